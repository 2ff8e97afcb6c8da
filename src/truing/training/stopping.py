"""Ctrl-C and SIGTERM: the first lets the step in progress end and be saved, the second ends the process now."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from truing.core.errors import Stopped, Terminated

ERRORS: dict[int, type[Stopped]] = {signal.SIGINT: Stopped, signal.SIGTERM: Terminated}
NOTICE = b"\nstopping after this step; it will be saved (Ctrl-C again: stop now, and lose what is not saved)\n"


@dataclass(slots=True)
class Stop:
    """Whether somebody has asked for the end."""

    signal: int | None = None
    """By which."""


@contextmanager
def stop_when_asked(*, told: bool = True) -> Iterator[Stop]:
    """Take note of signals while the block runs; a second one raises KeyboardInterrupt in it.

    `told` says whether a person is told what follows. Only a process's main thread is told of signals; in another one
    nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number
        if told:
            os.write(2, NOTICE)  # a stream may be in the middle of a line, and cannot be entered twice

    before = {number: signal.signal(number, note) for number in ERRORS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
