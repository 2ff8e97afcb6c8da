"""The folder of a comparison: what is in it, whose it is, and what of it is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.compare.work import Trained
from truing.core.errors import MachineError, RunError
from truing.evaluate.held_out import Measured
from truing.training.run_directory import RunDirectory, replace_file

ARGUMENTS, PLAN = "arguments.json", "plan.json"
START = "start"
"""Names the start model among the results."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a comparison keeps everything."""

    path: Path

    def run(self, name: str, seed: int) -> Path:
        """A run directory like any other."""
        return self.path / "runs" / f"{name}-{seed}"

    @property
    def training_rows(self) -> Path:
        return self.path / "data" / "train"

    @property
    def held_out_rows(self) -> Path:
        return self.path / "data" / "held-out"

    def note(self, name: str, seed: int, what: str) -> Path:
        """What was found of a run: its `costs`, or how it was `measured`."""
        return self.path / "results" / f"{name}-{seed}.{what}.json"

    def costs(self, name: str, seed: int) -> Trained | None:
        """What a finished run cost; None while it is not finished."""
        file = self.note(name, seed, "costs")
        return Trained(**_read(file)) if file.is_file() else None

    def measured(self, name: str, seed: int) -> Measured | None:
        """How a result was measured; None while it has not been."""
        file = self.note(name, seed, "measured")
        return Measured.from_json(_read(file)) if file.is_file() else None

    def kept(self, name: str) -> Any:
        """The content of a JSON file at the top; None where there is none."""
        file = self.path / name
        return _read(file) if file.is_file() else None

    def keep(self, name: str, value: Any) -> None:
        """Write a JSON file at the top."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        replace_file(self.path / name, text + "\n")


def take(path: Path, arguments: Mapping[str, Any]) -> tuple[Folder, RunDirectory]:
    """Make the folder, or take up an interrupted comparison in it; locked for as long as the second is open.

    Raises RunError where it holds something else, or a comparison with other arguments, data or models that has begun
    to train.
    """
    folder = Folder(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; give another --output")
    strangers = sorted(one.name for one in path.iterdir() if one.name != ".lock") if path.is_dir() else []
    before = folder.kept(ARGUMENTS)
    if before is None and strangers:
        raise RunError(f"{path} is not empty (it has {strangers[0]}) and holds no comparison; give another --output")
    other = before is not None and before != json.loads(json.dumps(arguments))
    if other and any((path / "runs").iterdir()):
        raise RunError(f"{path} holds a comparison with {_difference(before, arguments)}; give another --output")
    try:
        for each in (path / "runs", path / "results"):
            each.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise MachineError(f"cannot create {path}: {failure.strerror}") from failure
    lock = RunDirectory(path)
    lock.lock()
    if other:
        (path / PLAN).unlink(missing_ok=True)
    folder.keep(ARGUMENTS, arguments)
    return folder, lock


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    flat_before, flat_now = dict(_flat(before)), dict(_flat(json.loads(json.dumps(now))))
    key = next(key for key in {**flat_before, **flat_now} if flat_before.get(key) != flat_now.get(key))
    shown = [str(flat.get(key, "nothing"))[:60] for flat in (flat_before, flat_now)]
    return f"another {key}: {shown[0]} there, {shown[1]} here"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        inside = isinstance(value, dict) and value
        found += _flat(value, f"{prefix}{key} ") if inside else [(f"{prefix}{key}", value)]
    return found


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise RunError(f"{file} cannot be read ({failure}); delete it, and it is made anew") from failure
