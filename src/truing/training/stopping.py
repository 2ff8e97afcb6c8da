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

ERRORS = {signal.SIGINT: Stopped, signal.SIGTERM: Terminated}
NOTICE = b"\nstopping after this step; it will be saved (Ctrl-C again: stop now, and lose what is not saved)\n"


@dataclass(slots=True)
class Stop:
    """Whether somebody has asked for the end."""

    asked: type[Stopped] | None = None


@contextmanager
def stop_when_asked() -> Iterator[Stop]:
    """Take note of signals while the block runs; a second one raises KeyboardInterrupt in it.

    Only a process's main thread is told of signals; in another one nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.asked is not None:
            raise KeyboardInterrupt
        stop.asked = ERRORS[signal.Signals(number)]
        os.write(2, NOTICE)  # a stream may be in the middle of a line, and cannot be entered twice

    before = {number: signal.signal(number, note) for number in ERRORS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
