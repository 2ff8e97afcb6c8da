"""A run's folder: the only thing that reports, comparisons and resuming read."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from truing.core.errors import RunError
from truing.core.files import parse_json, read_json, write_whole
from truing.training import lock
from truing.training.disk import on_disk

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Folders that trackers write."""
OWN_FOLDERS = ("reference", "density", "checkpoints", "base", "served", *TRACKERS)
OWN_FILES = (
    "recipe.yaml",
    "environment.json",
    "data.json",
    "plan.json",
    "samples.jsonl",
    "trackers.json",
    "report.html",
)
"""What a run that has not made a step yet may have written."""
STAGED, LEAVING = ".part", ".old"
"""Ends of the hidden names of what is not whole yet, and of what is being deleted."""


class RunDirectory:
    """Files of one run. Whoever writes holds its lock; a file is either whole or absent, metrics grow by lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Make a new run folder and lock it; a folder with something in it is refused and left alone."""
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; give another --output")
        entries = [entry for entry in path.iterdir() if entry.name != lock.FILE] if path.is_dir() else []
        if any(path.rglob("metrics.jsonl")) or any(path.rglob("final")):
            raise RunError(
                f"{path} already holds a run; continue it with `truing resume {path}`, or give another --output"
            )
        strangers = sorted(entry.name for entry in entries if not _is_ours(entry))
        if strangers:
            raise RunError(f"{path} is not empty (it has {strangers[0]}); give another --output")
        run = cls(path)
        with on_disk(path):
            path.mkdir(parents=True, exist_ok=True)
        run.lock()
        with on_disk(path):
            for entry in entries:  # of a run that ended before its first step
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run for reading."""
        if not (path / "recipe.yaml").is_file():
            raise RunError(f"{path} is not a run directory: it has no recipe.yaml")
        return cls(path)

    def lock(self) -> None:
        """Become the only writer; the lock ends with the process, however it ends.

        Raises RunError where something in the folder is a link: what is behind one is nobody's to write or delete.
        """
        link = next((entry for entry in _own_entries(self.path) if entry.is_symlink()), None)
        if link is not None:
            raise RunError(
                f"{link} is a link, and a run writes and deletes only what lies in its own folder; put what it points "
                "to in its place"
            )
        self._lock = lock.acquire(self.path)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole."""
        replace_file(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file whole."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run."""
        try:
            return read_json(self.path / name)
        except (OSError, ValueError) as failure:
            raise RunError(f"{self.path / name} cannot be read: {failure}") from failure

    def read_object(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run that holds an object."""
        found = self.read_json(name)
        if not isinstance(found, dict):
            raise RunError(f"{self.path / name} holds {type(found).__name__} where an object is expected")
        return found

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line of JSON to a file such as metrics.jsonl."""
        file = self.path / name
        with on_disk(file), file.open("a", encoding="utf-8") as handle:
            handle.write(_line(row))

    def flush(self, *names: str) -> None:
        """Wait until what was appended to these files is on the disk."""
        for file in (self.path / name for name in names):
            if file.is_file():
                with on_disk(file):
                    sync(file)

    def delete(self, *names: str) -> None:
        """Delete files that may be there."""
        with on_disk(self.path):
            for name in names:
                (self.path / name).unlink(missing_ok=True)

    def truncate_lines(self, name: str, last_step: int) -> None:
        """Keep the lines up to a step: what came after the checkpoint is trained again and written again."""
        file = self.path / name
        if not file.is_file():
            return
        kept = itertools.takewhile(lambda row: row["step"] <= last_step, self.rows(name))
        self.write_text(name, "".join(_line(row) for row in kept))

    def add_to_last(self, name: str, figures: Mapping[str, Any]) -> None:
        """Add figures to the last line of a file such as metrics.jsonl."""
        *before, last = self.rows(name)
        self.write_text(name, "".join(_line(row) for row in (*before, {**last, **figures})))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The whole rows of a file such as metrics.jsonl; none where it is not there yet."""
        return rows_of(self.path / name)

    def is_finished(self) -> bool:
        """Whether the result has been written."""
        return (self.path / "final").is_dir()


class OnlookersRun(RunDirectory):
    """The same folder for a rank that is not the one that writes."""

    def lock(self) -> None: ...

    def write_text(self, name: str, text: str) -> None: ...

    def append(self, name: str, row: Mapping[str, Any]) -> None: ...

    def flush(self, *names: str) -> None: ...

    def delete(self, *names: str) -> None: ...

    def truncate_lines(self, name: str, last_step: int) -> None: ...

    def add_to_last(self, name: str, figures: Mapping[str, Any]) -> None: ...


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines that a run wrote, up to the first that is damaged; none where there is no file.

    What a kill or a lost disk has harmed stands at the end, behind the last checkpoint.
    """
    found: list[dict[str, Any]] = []
    # Not splitlines: the words of a model may hold other ends of lines, such as U+2028, which JSON leaves as they are.
    for line in file.read_bytes().split(b"\n") if file.is_file() else ():
        try:
            row = parse_json(line.decode("utf-8"))
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        found.append(row)
    return found


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _own_entries(folder: Path) -> Iterator[Path]:
    """Everything below a folder, without what trackers keep there, who link as they like."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        yield entry
        if entry.is_dir() and not entry.is_symlink() and entry.name not in TRACKERS:
            yield from _own_entries(entry)


def _is_ours(entry: Path) -> bool:
    """Whether a run that has not made a step yet may have written this, or was writing it when it was killed."""
    if entry.is_symlink():
        return False
    if entry.name.startswith(".") and entry.suffix in (STAGED, LEAVING):
        return True
    if entry.is_dir():
        return entry.name in OWN_FOLDERS or (entry / "recipe.yaml").is_file()
    return entry.name in OWN_FILES


def replace_file(target: Path, text: str) -> None:
    """Write a file whole or not at all: to a neighbour first, then renamed."""
    with on_disk(target):
        write_whole({target: text.encode("utf-8")})
        sync(target.parent)


def move(staging: Path, target: Path) -> None:
    """Give a file or folder its final name, for good: the folder that holds it is on the disk too."""
    staging.replace(target)
    sync(target.parent)


def publish(staging: Path, target: Path) -> None:
    """Give a finished folder its final name in one rename, after every byte of it is on the disk."""
    with on_disk(target):
        for file in sorted(staging.rglob("*")):
            sync(file)
        sync(staging)
        if target.exists():
            remove(target)
        move(staging, target)


def remove(folder: Path) -> None:
    """Delete a folder that is never seen half deleted: its name goes first."""
    hidden = folder.with_name(f".{folder.name}{LEAVING}")
    if hidden.exists():
        shutil.rmtree(hidden)
    folder.replace(hidden)
    shutil.rmtree(hidden)


def fresh_staging(target: Path) -> Path:
    """An empty neighbour of `target` to write into."""
    staging = staging_of(target)
    with on_disk(target):
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
    return staging


def staging_of(target: Path) -> Path:
    """The neighbour of `target` that is written into."""
    return target.with_name(f".{target.name}{STAGED}")


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
