"""The state of a run on disk: tensors and JSON only, complete or absent, verified when read."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from truing.training.ranks import ALONE, Ranks
from truing.training.run_directory import fresh_staging, publish, remove, staging_of
from truing.training.settings import CheckpointSettings
from truing.training.shards import FOLDER as SHARDS
from truing.training.shards import read_shards, write_shards

LEAST_KEPT = 2
"""Checkpoints that no limit of space takes away: a damaged one needs a predecessor."""


CUTS = "cuts"
"""In state.json: the names of the tensors that lie in the folder of shards."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Tensors on the disk, cut over the ranks that wrote them."""

    folder: Path
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What continues a run exactly: tensors (weights, moments, torch's random state) and plain values."""

    step: int
    """Optimizer steps done."""
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    cuts: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that are cut over ranks, of which each rank writes its part."""
    stored: Stored | None = None
    """What was read of them: not they themselves, but where they lie."""

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        every = (*self.tensors.values(), *self.cuts.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in every)

    def read(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors; those that were written cut over ranks are cut as `like`, or are whole where that is."""
        if self.stored is None:
            return dict(self.tensors)
        missing = [name for name in self.stored.names if name not in like]
        if missing:
            raise RunError(f"the checkpoint was written for other parameters: {missing[0]} does not match")
        into = {name: torch.zeros_like(like[name]) for name in self.stored.names}
        read_shards(self.stored.folder, into)
        return {**self.tensors, **into}


def save(folder: Path, checkpoint: Checkpoint, settings: CheckpointSettings, ranks: Ranks = ALONE) -> Path:
    """Write `folder/step-NNNNNN`, then delete the oldest ones that the settings do not keep.

    Everything goes to a hidden neighbour, the manifest with each file's SHA-256 last; one rename makes it a checkpoint.
    Raises MachineError where the disk is too full for it, or refuses; the checkpoints before stay as they are.
    """
    target = _write(folder, checkpoint, ranks)
    if ranks.first:
        with on_disk(folder):
            for old in _not_kept(complete(folder), settings):
                remove(old)
    return target


def save_alone(folder: Path, checkpoint: Checkpoint, ranks: Ranks = ALONE) -> Path:
    """Write `folder/step-NNNNNN` in the same way, then delete all others."""
    target = _write(folder, checkpoint, ranks)
    if ranks.first:
        with on_disk(folder):
            for old in complete(folder):
                if old != target:
                    remove(old)
    return target


def load_latest(folder: Path, ranks: Ranks = ALONE) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose files match its manifest, and a sentence about each one passed over.

    Of several ranks the first looks, and all take the one that it found.
    """
    place, found, complaints = _newest_sound(folder) if ranks.first else (None, None, [])
    name = ranks.from_first(None if place is None else place.name)
    return found if ranks.first or name is None else _read(folder / name), complaints


def _newest_sound(folder: Path) -> tuple[Path | None, Checkpoint | None, list[str]]:
    complaints: list[str] = []
    for candidate in reversed(complete(folder)):
        problem = damage(candidate)
        if problem:
            complaints.append(f"{candidate} is damaged ({problem}); going back to the one before")
            continue
        try:
            return candidate, _read(candidate), complaints
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as failure:
            complaints.append(f"{candidate} is no checkpoint ({failure!r}); going back to the one before")
    return None, None, complaints


def _read(folder: Path) -> Checkpoint:
    values = read_json(folder / "state.json")
    cuts = values.pop(CUTS, None)
    stored = None if cuts is None else Stored(folder / SHARDS, tuple(cuts))
    return Checkpoint(values.pop("step"), load_file(folder / "state.safetensors"), values, stored=stored)


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


def _write(folder: Path, checkpoint: Checkpoint, ranks: Ranks) -> Path:
    target = folder / f"step-{checkpoint.step:06d}"
    if not checkpoint.cuts:
        if ranks.first:
            _prepare(folder, checkpoint, target)
            _finish(checkpoint, target)
        ranks.barrier()
        return target
    if ranks.first:
        _prepare(folder, checkpoint, target)
    ranks.barrier()
    with on_disk(target):
        write_shards(checkpoint.cuts, staging_of(target) / SHARDS)
    ranks.barrier()
    if ranks.first:
        _finish(checkpoint, target)
    ranks.barrier()
    return target


def _prepare(folder: Path, checkpoint: Checkpoint, target: Path) -> None:
    """Make room, and an empty place to write into."""
    with on_disk(target):
        _sweep(folder)
        _make_room(folder, checkpoint.size)
        fresh_staging(target)


def _finish(checkpoint: Checkpoint, target: Path) -> None:
    """Write what is not cut, and give it all its name."""
    staging = staging_of(target)
    with on_disk(target):
        tensors = {name: t.detach().contiguous().cpu() for name, t in checkpoint.tensors.items()}
        save_file(tensors, staging / "state.safetensors")
        cuts = {CUTS: list(checkpoint.cuts)} if checkpoint.cuts else {}
        values = json.dumps({"step": checkpoint.step, **checkpoint.values, **cuts})
        (staging / "state.json").write_text(values, encoding="utf-8")
        write_manifest(staging)
        publish(staging, target)


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
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


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
