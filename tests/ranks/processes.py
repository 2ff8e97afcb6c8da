"""Runs something as several ranks: processes forked from one that has imported everything, so that it takes little."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from truing.build.chain import resume, run
from truing.recipe.load import recipe_from
from truing.training.process_group import joined
from truing.training.progress import Silent
from truing.training.ranks import Ranks
from truing.training.trainer import Trainer

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["truing.build.chain", "truing.models.sharding", "tests.ranks.processes"])
PATIENCE = 240
"""Seconds after which a rank that waits for another tells where, and ends."""

Job = tuple[dict[str, Any], Path]
"""A recipe and its run directory."""


def on_ranks(world: int, work: Callable[..., None], *arguments: Any) -> list[int]:
    """Call a function in so many ranks that have joined; return their exit codes."""
    port = _free_port()
    processes = [CONTEXT.Process(target=_rank, args=(rank, world, port, work, arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]


def train(ranks: Ranks, jobs: Sequence[Job]) -> None:
    """Run recipes one after the other."""
    for recipe, output in jobs:
        run(recipe_from(recipe), output, Silent(), None, ranks)


def train_until(ranks: Ranks, jobs: Sequence[Job], step: int) -> None:
    """The same, each cut in the middle of a step."""
    real = Trainer._update

    def dies(self: Trainer, prepared: Any, total: int) -> Any:
        if prepared.index == step:
            raise KeyboardInterrupt
        return real(self, prepared, total)

    Trainer._update = dies  # type: ignore[method-assign]  # in a process of its own
    for job in jobs:
        with pytest.raises(KeyboardInterrupt):
            train(ranks, [job])


def go_on(ranks: Ranks, outputs: Sequence[Path]) -> None:
    """Resume runs one after the other."""
    for output in outputs:
        resume(output, Silent(), ranks)


def _rank(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    with joined() as ranks:
        work(ranks, *arguments)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
