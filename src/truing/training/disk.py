"""What a disk refuses, said in a sentence that names the disk and the space on it; and room looked for beforehand."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from truing.core.errors import MachineError, TruingError

REMEDIES = {
    errno.ENOSPC: "free some space there, or give another --output",
    errno.EDQUOT: "your quota is used up: delete something there, or give another --output",
    errno.EROFS: "it is mounted read-only: make it writable, or give another --output",
    errno.EACCES: "give yourself the right to write there, or give another --output",
    errno.EIO: "the disk fails: look into the system's log, and copy what is there to another one",
}
SPARE_BYTES = 4 * 2**20
"""Left free beside what is about to be written, for logs and folders."""


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Turn a failure to write below `path` into a MachineError."""
    try:
        yield
    except TruingError:
        raise
    except Exception as failure:  # libraries written in Rust raise nothing narrower, and name the number in their text
        number = _error_number(failure)
        if number is None:
            raise
        remedy = REMEDIES.get(number, "mend that, or give another --output")
        raise MachineError(f"cannot write {path}: {os.strerror(number)}; {described(path)}; {remedy}") from failure


def check_room(path: Path, needed: int, what: str) -> None:
    """Raise MachineError where so many bytes do not fit on the disk of `path`."""
    if free_bytes(path) < needed + SPARE_BYTES:
        raise MachineError(f"{what} need {in_units(needed)}, and {described(path)}; {REMEDIES[errno.ENOSPC]}")


def free_bytes(path: Path) -> int:
    """Bytes that may be written on the disk of `path`, which need not be there yet."""
    with on_disk(path):
        return shutil.disk_usage(_existing(path)).free


def described(path: Path) -> str:
    """Name the disk of `path` and the space on it."""
    mount = _existing(path).resolve()
    try:
        while not mount.is_mount() and mount != mount.parent:
            mount = mount.parent
        usage = shutil.disk_usage(mount)
    except OSError:  # a disk that fails does not answer this either
        return f"the disk at {mount} does not answer"
    return f"the disk at {mount} has {in_units(usage.free)} free of {in_units(usage.total)}"


def in_units(count: int) -> str:
    """Bytes for a person.

    >>> in_units(5_300), in_units(2_500_000), in_units(41_700_000_000)
    ('5 kB', '2.5 MB', '41.7 GB')
    """
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _error_number(failure: Exception) -> int | None:
    """The system's number of a failure: its own, or that which a library's text names."""
    if isinstance(failure, OSError) and failure.errno is not None:
        return failure.errno
    named = re.search(r"\(os error (\d+)\)", str(failure))
    return int(named[1]) if named else None
