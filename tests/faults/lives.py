"""Lives of one run: each begins in a fresh process, forked from one that has imported everything, and may be cut."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOADED = "tests.faults.preload"
UNTIMED = ("seconds", "memory_bytes")
"""Figures of a step that no run repeats."""


@dataclass(frozen=True, slots=True)
class Life:
    """How a process ended."""

    exit_code: int
    kind: str
    """killed, failed or done."""
    told: Any
    """Where it was killed; the error's exit code and message; or the points that were passed."""


def live(
    recipe: Mapping[str, Any],
    output: Path,
    at: int = 0,
    kinds: tuple[str, ...] = (),
    harm: str = "kill",
    sabotage: str = "nothing",
) -> Life:
    """Begin a run, or resume it, in a process of its own; it is hurt at the point of that number."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(dict(recipe), output, at, kinds, harm, sabotage, sender))
    process.start()
    sender.close()
    try:
        kind, told = receiver.recv()
    except EOFError:
        kind, told = "silent", None
    process.join()
    return Life(process.exitcode or 0, kind, told)


def lives(
    recipe: Mapping[str, Any],
    output: Path,
    cuts: Iterable[int],
    kinds: tuple[str, ...] = (),
    harm: str = "kill",
    sabotage: str = "nothing",
) -> list[Any]:
    """Hurt the run in life after life, each at its n-th point, until one ends well or the cuts do; the last is spared.

    Returns what each that was hurt told. All were: one that ends well before its point is the last.
    """
    expected = (-signal.SIGKILL, "killed") if harm == "kill" else (0, "failed")
    told = []
    for at in cuts:
        life = live(recipe, output, at, kinds, harm, sabotage)
        if life.kind == "done":
            return told
        assert (life.exit_code, life.kind) == expected, life
        told.append(life.told)
    last = live(recipe, output, sabotage=sabotage)
    assert last.kind == "done", last
    return told


def _run(
    recipe: dict[str, Any],
    output: Path,
    at: int,
    kinds: tuple[str, ...],
    harm: str,
    sabotage: str,
    sender: Connection,
) -> None:
    import torch

    from tests.faults import sabotages
    from tests.faults.points import Fail, Kill, Points, Short, install
    from truing.build.chain import resume, run
    from truing.core.errors import TruingError
    from truing.recipe.load import recipe_from
    from truing.training.progress import Silent

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    getattr(sabotages, sabotage)()
    harms = {"kill": lambda: Kill(sender.send), "short": Short}
    points = Points(at, harms[harm]() if harm in harms else Fail(getattr(errno, harm)), kinds)
    install(points, output)
    try:
        if (output / "recipe.yaml").is_file():
            resume(output, Silent())
        else:
            run(recipe_from(recipe), output, Silent())
    except TruingError as wrong:
        sender.send(("failed", (wrong.exit_code, str(wrong))))
    else:
        sender.send(("done", points.passed))


def result_of(output: Path) -> dict[str, Any]:
    """What two runs of one recipe share to the last bit: weights, figures, samples."""
    found: dict[str, Any] = {"final": weights_digest(output / "final")}
    for file in sorted(output.rglob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[str(file.relative_to(output))] = [{k: v for k, v in row.items() if k not in UNTIMED} for row in rows]
    return found


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weight files of a result."""
    total = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()
