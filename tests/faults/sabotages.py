"""Faults put into the program on purpose, to see that the tests notice them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from truing.training import checkpoint


def nothing() -> None:
    """The program as it is."""


def saves_in_place() -> None:
    """Checkpoints are written under their own name, the manifest first, and are believed when read."""

    def in_place(target: Path) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / checkpoint.MANIFEST).write_text("{}", encoding="utf-8")
        return target

    checkpoint.fresh_staging = in_place  # type: ignore[attr-defined]
    checkpoint.staging_of = lambda target: target  # type: ignore[attr-defined]
    checkpoint.publish = lambda staging, target: None  # type: ignore[attr-defined]
    checkpoint.damage = lambda folder: None  # type: ignore[attr-defined]


def forgets_torch() -> None:
    """A resumed run draws its dropout from where torch's generator happens to stand."""
    real = checkpoint.restore_random_states

    def forgetful(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        real({**tensors, "random.torch": torch.get_rng_state()}, values)

    checkpoint.restore_random_states = forgetful
