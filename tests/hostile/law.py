"""What holds for whatever is read: an answer or one of our errors, in time, in bounds, and nothing written."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.hostile.mutation import Choose
from truing.core.errors import TruingError

SECONDS = 20
"""In which every case has to be over: a sound one takes a thousandth of it."""
BYTES = 3 * 2**30
"""By which the process may grow."""

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Reader:
    """Something that reads files of strangers."""

    name: str
    make: Callable[[Choose], Files]
    """Draws unsound files."""
    read: Callable[[Path], object]
    """Reads what `make` has made, in the folder that holds it."""
    share: float = 1.0
    """Of the cases that are asked for; a reader that loads whole models is given fewer."""


class Hung(BaseException):
    """A case took too long."""


def hold(reader: Reader, choose: Choose, folder: Path) -> bool:
    """Read one case; whether it was refused. Whatever breaks the law is raised."""
    files = reader.make(choose)
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    why = None
    try:
        with _in_time():
            reader.read(folder)
    except TruingError as refusal:
        why = str(refusal)
    finally:
        left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        assert left == set(files), "nothing was written, nothing deleted"
    assert why is None or why.strip(), "a refusal says why"
    return why is not None


def bound_memory() -> None:
    """Let this process grow by so much only."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


@contextmanager
def _in_time() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Hung(f"not over after {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)  # the alarm belongs to what is tested
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
