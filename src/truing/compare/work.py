"""What runs in processes of its own: looking at a stage, calibrating it, training it, examining its result."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from truing.build.chain import resume, run
from truing.build.policy import Start
from truing.build.stage import assemble
from truing.core.errors import GuardError
from truing.data.packing import StepPlan
from truing.evaluate.held_out import Exam, measure
from truing.recipe.schema import Recipe, Stage
from truing.training.progress import Reporter, Silent, peak_memory_bytes
from truing.training.run_directory import replace_file, rows_of


@dataclass(frozen=True, slots=True)
class Pace:
    """What a step costs, from a short run that is thrown away."""

    tokens: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run cost, and whether it reached its end."""

    seconds: float
    """Of its process in all; only the last part where it was interrupted."""
    peak_bytes: int
    """Largest resident memory of its process, libraries included."""
    device_bytes: int | None
    """Most memory taken on a GPU."""
    resumed: bool
    stopped: str | None
    """Why a guard ended it, if one did."""


def look_at(stage: Stage, reporter: Reporter) -> StepPlan:
    """Load everything that a first stage needs, which finds its faults, and return how its rows make steps.

    What training warns of it will warn of again, so that is not said here.
    """
    return assemble(stage, _start(stage), None, Silent()).plan


def calibrate(recipe: Recipe, folder: Path, warm: int, reporter: Reporter) -> Pace:
    """Train a few steps for nothing but their costs; the first `warm` are slower, and do not count for the time."""
    run(_without_samples(recipe), folder, reporter)
    rows = steps_of(folder)
    return Pace(fmean(row["tokens"] for row in rows), fmean(row["seconds"] for row in rows[warm:]))


def train(recipe: Recipe, folder: Path, note: Path, reporter: Reporter) -> Trained:
    """Run a recipe, or go on with it; a guard that stops it is a result too. What it cost is written to `note`."""
    began = time.perf_counter()
    resumed = (folder / "recipe.yaml").is_file()
    stopped = None
    try:
        if resumed:
            resume(folder, reporter)
        else:
            run(recipe, folder, reporter)
    except GuardError as guard:
        stopped = str(guard)
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    found = Trained(time.perf_counter() - began, peak_memory_bytes(), device, resumed, stopped)
    replace_file(note, json.dumps(asdict(found)) + "\n")
    return found


def examine(result: Path, exam: Exam, note: Path, reporter: Reporter) -> None:
    """Measure a result on held-out data and write what was found to `note`."""
    replace_file(note, json.dumps(measure(result, exam, reporter).as_json(), ensure_ascii=False) + "\n")


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of a run, or of all stages of a chain one after the other."""
    files = [folder / "metrics.jsonl"]
    if not files[0].is_file():
        stages = [file.parent for file in folder.glob("*/metrics.jsonl") if file.parent.name.split("-")[0].isdigit()]
        files = [stage / "metrics.jsonl" for stage in sorted(stages, key=lambda one: int(one.name.split("-")[0]))]
    return [row for file in files for row in rows_of(file)]


def _start(stage: Stage) -> Start:
    adapter = stage.adapter.start if stage.adapter is not None else None
    return Start(str(stage.model), None if adapter is None else Path(adapter))


def _without_samples(recipe: Recipe) -> Recipe:
    stages = tuple(
        stage.model_copy(update={"samples": stage.samples.model_copy(update={"count": 0, "prompts": ()})})
        for stage in recipe.stages
    )
    return recipe.model_copy(update={"stages": stages})
