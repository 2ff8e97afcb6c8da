"""The state of a run on disk: tensors and JSON only, complete or absent, verified when read."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from truing.core.errors import MachineError, RunError
from truing.core.files import read_json
from truing.training.disk import check_room, free_bytes, in_units, on_disk
from truing.training.manifest import MANIFEST, damage, write_manifest
from truing.training.run_directory import fresh_staging, publish, remove
from truing.training.settings import CheckpointSettings

LEAST_KEPT = 2
"""Checkpoints that no limit of space takes away: a damaged one needs a predecessor."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What continues a run exactly: tensors (weights, moments, torch's random state) and plain values."""

    step: int
    """Optimizer steps done."""
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def save(folder: Path, checkpoint: Checkpoint, settings: CheckpointSettings) -> Path:
    """Write `folder/step-NNNNNN`, then delete the oldest ones that the settings do not keep.

    Everything goes to a hidden neighbour, the manifest with each file's SHA-256 last; one rename makes it a checkpoint.
    Raises MachineError where the disk is too full for it, or refuses; the checkpoints before stay as they are.
    """
    target = _write(folder, checkpoint)
    with on_disk(folder):
        for old in _not_kept(complete(folder), settings):
            remove(old)
    return target


def save_alone(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/step-NNNNNN` in the same way, then delete all others."""
    target = _write(folder, checkpoint)
    with on_disk(folder):
        for old in complete(folder):
            if old != target:
                remove(old)
    return target


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose files match its manifest, and a sentence about each one passed over."""
    complaints = []
    for candidate in reversed(complete(folder)):
        problem = damage(candidate)
        if problem:
            complaints.append(f"{candidate} is damaged ({problem}); going back to the one before")
            continue
        try:
            values = read_json(candidate / "state.json")
            tensors = load_file(candidate / "state.safetensors")
            return Checkpoint(values.pop("step"), tensors, values), complaints
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as failure:
            complaints.append(f"{candidate} is no checkpoint ({failure!r}); going back to the one before")
    return None, complaints


def discard_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps: damaged ones, which would count among those that are kept."""
    with on_disk(folder):
        for later in complete(folder):
            if _step_of(later) > step:
                remove(later)


def complete(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    named = [p for p in folder.glob("step-*") if p.name[5:].isdecimal() and (p / MANIFEST).is_file()]
    return sorted(named, key=_step_of)


def check_space(folder: Path, size: int, settings: CheckpointSettings) -> None:
    """Raise MachineError, before the first step, where checkpoints of so many bytes will not fit.

    One more than is kept is there for a moment.
    """
    limit = settings.max_bytes
    if limit is not None and LEAST_KEPT * size > limit:
        raise MachineError(
            f"checkpoint.max_gb is {settings.max_gb:g}, but a checkpoint takes {in_units(size)} and two are always "
            "kept; raise it, or leave it out"
        )
    present = complete(folder)
    missing = max(0, LEAST_KEPT + 1 - len(present))
    check_room(folder, missing * size, f"the checkpoints of this run ({missing} of {in_units(size)})")


def _write(folder: Path, checkpoint: Checkpoint) -> Path:
    target = folder / f"step-{checkpoint.step:06d}"
    with on_disk(target):
        _sweep(folder)
        _make_room(folder, checkpoint.size)
        staging = fresh_staging(target)
        tensors = {name: t.detach().contiguous().cpu() for name, t in checkpoint.tensors.items()}
        save_file(tensors, staging / "state.safetensors")
        values = json.dumps({"step": checkpoint.step, **checkpoint.values})
        (staging / "state.json").write_text(values, encoding="utf-8")
        write_manifest(staging)
        publish(staging, target)
    return target


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[5:])


def _sweep(folder: Path) -> None:
    """Delete what a run that was killed while it saved, or deleted, has left behind."""
    for left in folder.glob(".step-*") if folder.is_dir() else ():
        shutil.rmtree(left)


def _make_room(folder: Path, needed: int) -> None:
    """Let go of more than the settings do where the disk is full, but not of the last two."""
    for old in complete(folder)[:-LEAST_KEPT]:
        if free_bytes(folder) >= needed:
            return
        remove(old)
    check_room(folder, needed, "a checkpoint")


def _not_kept(found: Sequence[Path], settings: CheckpointSettings) -> list[Path]:
    """The oldest, beyond the number and the space that may be kept."""
    kept = list(found[-settings.keep :])
    if settings.max_bytes is not None:
        while len(kept) > LEAST_KEPT and sum(map(_size, kept)) > settings.max_bytes:
            kept.pop(0)
    return [each for each in found if each not in kept]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def random_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch's, Python's and NumPy's global generators, as tensors and JSON: nothing pickled."""
    tensors = {"random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    values = {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }
    return tensors, values


def restore_random_states(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Put the global generators back to where `random_states` found them."""
    try:
        torch.set_rng_state(tensors["random.torch"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
        version, internal, gauss = values["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, position, has_gauss, cached = values["numpy"]
        np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    except (LookupError, ValueError, TypeError, OverflowError, RuntimeError) as failure:
        raise RunError(f"the checkpoint's random states cannot be restored: {failure}") from failure
