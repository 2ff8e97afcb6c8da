"""Runs recipes of the learning benchmark, each in a process of its own, and brings back what it gave and cost."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.build.chain import run
from truing.recipe.load import recipe_from
from truing.training.progress import Silent


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    folder: Path
    metrics: list[dict[str, Any]]
    cpu_seconds: float  # of the run without imports; a reward function's process not included
    peak_bytes: int  # resident memory of its process, imports included

    @property
    def final(self) -> Path:
        return self.folder / "final"

    @property
    def last(self) -> dict[str, Any]:
        return self.metrics[-1]


def train(recipe: Mapping[str, Any], folder: Path) -> Trained:
    """Run a recipe into a fresh folder."""
    shutil.rmtree(folder, ignore_errors=True)

    def work() -> float:
        began = time.process_time()
        run(recipe_from(dict(recipe)), folder, Silent())
        return time.process_time() - began

    seconds = apart(work)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Trained(folder, metrics, seconds, metrics[-1]["memory_bytes"])


def apart(work: Callable[[], Any]) -> Any:
    """Do something in a forked process, so that its peak memory is its own and its imports are free."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def target() -> None:
        try:
            sender.send((True, work()))
        except BaseException:  # noqa: BLE001 - told to the parent, which stops
            sender.send((False, traceback.format_exc()))

    process = context.Process(target=target)
    process.start()
    sender.close()
    done, found = receiver.recv()
    process.join()
    if not done:
        raise SystemExit(found)
    return found


def stage(base: Path, start: Path | None, data: Path, objective: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A recipe of one stage with LoRA, from an adapter over the base or from the base."""
    adapter = {"use": "lora", "rank": 8, **({} if start is None else {"start": str(start)})}
    return {
        "model": str(base),
        "adapter": adapter,
        "objective": dict(objective),
        "data": {"path": str(data), "max_length": 64},
        "samples": {"count": 0},
        "checkpoint": {"every": 100_000},
        "precision": {"matmul": "highest"},  # the same on every run, whatever else the machine does
        **changes,
    }
