"""Starts several processes of one command through torch's own launcher, and ends with the code of the first to fail."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any

import click

from truing.core.errors import MachineError, Stopped, Terminated

ELASTIC = "torch.distributed.elastic"

nproc = click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Train with so many processes on this machine, one for each GPU.",
)


def in_processes(count: int, arguments: Sequence[str]) -> None:
    """Run `truing ARGUMENTS` as so many processes that know of each other, until all are done.

    Raises SystemExit with the code of the first that fails, which has said why, and MachineError where one was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [name for name in logging.root.manager.loggerDict if name.startswith(ELASTIC)]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # each has a level of its own
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    command: list[Any] = ["-m", "truing", *arguments]
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise MachineError(f"process {rank} of {count} was ended by {name}, and with it the others") from None
        sys.exit(failure.exitcode)
    except SignalException as stopped:
        sys.exit(Stopped.exit_code if stopped.sigval == signal.SIGINT else Terminated.exit_code)


def given(name: str, values: Sequence[object]) -> list[str]:
    """An option as it is written on a command line, once for each of its values; nothing where it has none."""
    return [part for value in values if value is not None for part in (name, str(value))]
