"""Pieces of work for processes of their own; each is called with its arguments and a reporter."""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from truing.core.errors import DataError
from truing.training.progress import Reporter

PATIENCE = 30.0
"""Seconds after which a job that waits for another gives up."""


def tell(reporter: Reporter) -> int:
    """Say one of everything; return the process that said it."""
    reporter.say("a word")
    reporter.warn("a warning")
    reporter.show("a row", [("prompt", False), ("completion", True)])
    reporter.begin("steps", 2)
    reporter.advance(1, {"loss": 0.5})
    reporter.end()
    return os.getpid()


def span(seconds: float, reporter: Reporter) -> tuple[float, float]:
    """When it began and ended, on the clock that all processes share."""
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


def meet(mine: Path, other: Path, reporter: Reporter) -> None:
    """Leave a file and wait for another's: two of these end only when they run side by side."""
    mine.touch()
    _wait_for(other)


def hold(megabytes: int, reporter: Reporter) -> int:
    """Fill so much memory, each page of it written to."""
    return len(b"\x01" * (megabytes * 2**20))


def count(seconds: float, reporter: Reporter) -> None:
    """Keep a core busy for so much CPU time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def look(reporter: Reporter) -> tuple[bool, int]:
    """Whether the libraries were there before the work, and how many threads torch takes."""
    return "truing.evaluate.exact" in sys.modules, sys.modules["torch"].get_num_threads()


def refuse(reporter: Reporter) -> None:
    raise DataError("train.jsonl:3: record has no 'chosen'")


def stumble(reporter: Reporter) -> None:
    raise ZeroDivisionError("nobody foresaw this")


def give_code(reporter: Reporter) -> Callable[[], None]:
    """Something that cannot be sent."""
    return lambda: None


def vanish(reporter: Reporter) -> None:
    """End as the kernel ends a process for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def vanish_while_sending(reporter: Reporter) -> None:
    """The same with 4 of 1,000 announced bytes in the pipe."""
    pipe = reporter._sender.fileno()  # type: ignore[attr-defined]
    os.write(pipe, struct.pack("!i", 1000) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def linger(file: Path, reporter: Reporter) -> None:
    """Write down which process this is, and stay."""
    unfinished = file.with_suffix(".part")
    unfinished.write_text(str(os.getpid()), encoding="ascii")
    unfinished.rename(file)
    time.sleep(PATIENCE)


def refuse_after(file: Path, reporter: Reporter) -> None:
    _wait_for(file)
    refuse(reporter)


def _wait_for(file: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{file} never came")
        time.sleep(0.01)
