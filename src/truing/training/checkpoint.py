"""The state of a run on disk: tensors and JSON only, complete or absent, verified when read."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from truing.core.errors import RunError
from truing.training.run_directory import fresh_staging, publish

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What continues a run exactly: tensors (weights, moments, torch's random state) and plain values."""

    step: int
    """Optimizer steps done."""
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/step-NNNNNN` and delete all but the newest `keep`.

    Everything goes to a hidden neighbour, the manifest with each file's SHA-256 last; one rename makes it a checkpoint.
    """
    target = folder / f"step-{checkpoint.step:06d}"
    staging = fresh_staging(target)
    save_file(
        {name: t.detach().contiguous().cpu() for name, t in checkpoint.tensors.items()}, staging / "state.safetensors"
    )
    (staging / "state.json").write_text(json.dumps({"step": checkpoint.step, **checkpoint.values}), encoding="utf-8")
    manifest = {file.name: file_digest(file) for file in sorted(staging.iterdir())}
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    publish(staging, target)
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose files match its manifest, and a sentence about each one passed over."""
    complaints = []
    for candidate in reversed(_complete(folder)):
        problem = _damage(candidate)
        if problem:
            complaints.append(f"{candidate} is damaged ({problem}); going back to the one before")
            continue
        values = json.loads((candidate / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(candidate / "state.safetensors")
        return Checkpoint(values.pop("step"), tensors, values), complaints
    return None, complaints


def _complete(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    named = [p for p in folder.glob("step-*") if p.name[5:].isdecimal() and (p / MANIFEST).is_file()]
    return sorted(named, key=lambda p: int(p.name[5:]))


def _damage(candidate: Path) -> str | None:
    try:
        manifest = json.loads((candidate / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in manifest.items():
            if file_digest(candidate / name) != digest:
                return f"{name} does not match its SHA-256"
    except (OSError, ValueError, SafetensorError) as failure:
        return str(failure)
    return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    try:
        version, internal, gauss = values["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, position, has_gauss, cached = values["numpy"]
        np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    except (KeyError, ValueError, TypeError) as failure:
        raise RunError(f"the checkpoint's random states cannot be restored: {failure}") from failure
