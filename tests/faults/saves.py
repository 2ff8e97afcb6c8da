"""Saving again and again, hurt at its first point, its second, and so on; run in a process of its own."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults.lives import PRELOADED

HALF = -1
"""The step of a checkpoint that is taken for whole and is not."""


@dataclass(frozen=True, slots=True)
class Hurt:
    """One save that was hurt."""

    what: str
    """Where it was killed, or the message of its error."""
    before: int
    """The step of the checkpoint before it."""
    found: int | None
    """The step that is read back."""
    kept: int
    """Checkpoints there are."""


def in_its_own_process(job: Callable[..., list[Hurt]], *arguments: Any) -> list[Hurt]:
    """What a job returns, from a process whose files it may watch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, job, arguments))
    process.start()
    sender.close()
    found: list[Hurt] = receiver.recv()
    process.join()
    return found


def _send(sender: Connection, job: Callable[..., list[Hurt]], arguments: tuple[Any, ...]) -> None:
    sender.send(job(*arguments))


def killed(folder: Path, sabotage: str) -> list[Hurt]:
    """A save is killed at its n-th operation, for all n."""
    from tests.faults import sabotages
    from tests.faults.points import Kill, Points, install

    getattr(sabotages, sabotage)()
    points = Points(0, Kill(lambda told: os.write(writing, told[1].encode())))
    install(points, folder)
    _save(folder, 1)
    _save(folder, 2)
    hurt = []
    while True:
        before = _latest(folder)
        if before == HALF:
            return hurt
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            points.at, points.passed = len(hurt) + 1, []
            _save(folder, (before or 0) + 1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os.close(writing)
        place = os.read(reading, 1000).decode()
        os.close(reading)
        if os.waitstatus_to_exitcode(status) == 0:
            return hurt
        assert os.WTERMSIG(status) == signal.SIGKILL
        hurt.append(Hurt(place, before or 0, _latest(folder), _count(folder)))


def refused(folder: Path, error: str) -> list[Hurt]:
    """The disk fails at a save's n-th operation, for all n."""
    from tests.faults.points import Fail, Points, install
    from truing.core.errors import MachineError

    points = Points(0, Fail(getattr(errno, error)))
    install(points, folder)
    _save(folder, 1)
    _save(folder, 2)
    hurt: list[Hurt] = []
    misses = 0
    while misses < 3:  # a full disk lets some operations pass
        before = _latest(folder) or 0
        points.at, points.passed = len(hurt) + misses + 1, []
        try:
            _save(folder, before + 1)
        except MachineError as failure:
            points.at = 0
            hurt.append(Hurt(str(failure), before, _latest(folder), _count(folder)))
            misses = 0
        else:
            misses += 1
        points.at = 0
    return hurt


def _save(folder: Path, step: int) -> None:
    import torch

    from truing.training import checkpoint
    from truing.training.settings import CheckpointSettings

    state = checkpoint.Checkpoint(step, {"weight.w": torch.full((64,), float(step))}, {"rows": step})
    checkpoint.save(folder, state, CheckpointSettings())


def _latest(folder: Path) -> int | None:
    import torch

    from truing.training import checkpoint

    found, complaints = checkpoint.load_latest(folder)
    if any("is no checkpoint" in complaint for complaint in complaints):  # though it was taken for whole
        return HALF
    if found is None:
        return None
    assert torch.equal(found.tensors["weight.w"], torch.full((64,), float(found.step)))
    return found.step


def _count(folder: Path) -> int:
    from truing.training import checkpoint

    return len(checkpoint.complete(folder))
