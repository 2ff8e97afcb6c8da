"""One writer for a folder. The system's lock ends with its process; where there is none, the file says who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from truing.core.errors import RunError
from truing.core.files import parse_json
from truing.training.disk import on_disk

FILE = ".lock"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without locks answers."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process of one start of one machine."""

    process: int
    boot: str
    """Changes whenever the machine starts; empty where the system does not tell."""
    machine: str

    @classmethod
    def here(cls) -> Holder:
        """The process that asks."""
        boot = BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.is_file() else ""
        return cls(os.getpid(), boot, platform.node())

    @classmethod
    def read(cls, text: str) -> Holder | None:
        """The holder that a lock file names; None where it names none."""
        try:
            found = parse_json(text)
            return cls(int(found["process"]), str(found["boot"]), str(found["machine"]))
        except (ValueError, LookupError, TypeError, OverflowError):
            return None

    def is_gone(self) -> bool:
        """Whether it is known to have ended: its machine has started anew, or has no such process."""
        here = Holder.here()
        if self.machine != here.machine:
            return False
        if self.boot != here.boot or self.process == here.process:  # a container's processes have few numbers
            return True
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is somebody else's
            return False
        return False


def acquire(folder: Path) -> IO[str]:
    """Become the only writer of a folder; closing what is returned gives it back.

    Raises RunError where another process writes there.
    """
    file = folder / FILE
    with on_disk(file):
        handle = file.open("a+", encoding="utf-8")
    handle.seek(0)
    held = Holder.read(handle.read())
    if not _take(handle, held, file):
        handle.close()
        who = f"process {held.process} on {held.machine}" if held else "another process"
        raise RunError(f"{folder} is being written by {who}; wait for it, or give another --output")
    with on_disk(file):
        handle.truncate(0)
        handle.write(json.dumps(asdict(Holder.here())))
        handle.flush()
    return handle


def _take(handle: IO[str], held: Holder | None, file: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as failure:
        if failure.errno in UNSUPPORTED:
            return held is None or held.is_gone()
        with on_disk(file):
            raise
    return True
