"""Runs a comparison: data, plans, training and exams, each left out where an earlier call has done it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from truing.build.forgetting import check_text
from truing.build.rewards import check_reward, is_function
from truing.compare.budget import Course, course, default_budget
from truing.compare.entries import (
    Beginning,
    Entry,
    Stock,
    entries_of,
    longest_row,
    room_for_prompts,
    stock_of,
    with_written_data,
)
from truing.compare.folder import PLAN, START, Folder, take
from truing.compare.pool import choose, groups_of
from truing.compare.request import Budget, Request
from truing.compare.work import Pace, Trained, calibrate, examine, look_at, train
from truing.core.errors import InputError
from truing.core.trees import ExampleKind
from truing.data.packing import StepPlan
from truing.data.records import read
from truing.evaluate.board import LineBoard, LiveBoard, board
from truing.evaluate.held_out import GENERAL_LENGTH, GENERAL_LIMIT, KEYS, Exam, Measured
from truing.evaluate.processes import Done, Task, run_tasks
from truing.models.folder import model_digest
from truing.rl.settings import RewardSettings
from truing.training.manifest import file_digest
from truing.training.settings import ForgettingSettings

SAMPLING_SEED = 1
CALIBRATION = 5
"""Steps, or rollouts, of a short run whose costs are measured."""
KINDS: tuple[ExampleKind, ...] = ("demonstration", "comparison", "prompt")
"""Of held-out rows."""

Board = LineBoard | LiveBoard


@dataclass(frozen=True, slots=True)
class Contest:
    """A finished comparison, as far as it was computed rather than judged."""

    request: Request
    folder: Folder
    beginning: Beginning
    entries: tuple[Entry, ...]
    budget: Budget | None
    courses: Mapping[str, Course]
    exam: Exam
    groups: Mapping[str, Sequence[int]]
    """The number of the prompt of each held-out row, by the kind of row."""
    arguments: Mapping[str, Any]
    data: tuple[str, ...]
    """Sentences about files and the split."""

    @property
    def seeds(self) -> range:
        return range(self.request.seeds)

    def costs(self, name: str) -> list[Trained]:
        """Of each seed."""
        found = [self.folder.costs(name, seed) for seed in self.seeds]
        return [one for one in found if one is not None]

    def measured(self, name: str) -> list[Measured]:
        """Of each seed; fewer where a guard stopped a run."""
        seeds = [0] if name == START else self.seeds
        found = [self.folder.measured(name, seed) for seed in seeds]
        return [one for one in found if one is not None]


def hold(request: Request, threads: int) -> Contest:
    """Train and measure everything that has not been yet. What is wrong is found before anything is trained."""
    request.check()
    beginning, entries = entries_of(request)
    stock = stock_of(entries, request)
    _check_measuring(request, beginning, stock)
    arguments = _arguments(request, beginning, stock)
    folder, lock = take(request.output, arguments)
    try:
        with board(_told) as shown:
            entries = with_written_data(entries, stock, folder.training_rows)
            exam, groups = _exam(request, beginning, entries, stock, folder)
            data = _about_data(stock)
            for line in data:
                shown.say(line)
            budget, courses = _plan(request, entries, folder, shown, threads)
            run_tasks(_training(entries, courses, request, folder), shown, at_once=1, threads=threads)
            run_tasks(_exams(beginning, entries, exam, request, folder), shown, at_once=1, threads=threads)
    finally:
        lock.close()
    return Contest(request, folder, beginning, entries, budget, courses, exam, groups, arguments, data)


def _check_measuring(request: Request, beginning: Beginning, stock: Stock) -> None:
    """Find what is wrong with general text, the judge, and the room for completions."""
    check_text(ForgettingSettings(path=request.general, limit=GENERAL_LIMIT, max_length=GENERAL_LENGTH))
    prompts = [prompt for pile in stock.piles for prompt in list(pile.prompts.values())[:2]]
    if request.reward is not None:
        if not prompts:
            raise InputError("--reward judges completions of prompts, and none of the files has a prompt; leave it out")
        check_reward(RewardSettings(use=request.reward), request.reward_timeout, prompts, keys=KEYS)
    if prompts:
        room_for_prompts(request, beginning.model)


def _arguments(request: Request, beginning: Beginning, stock: Stock) -> dict[str, Any]:
    """The exact arguments, and hashes of all that they name."""
    texts = {path: _sha256(Path(path)) for path in request.recipes}
    judge = (request.reward or "").rpartition(":")[0]
    return {
        "arguments": {**request.as_json(), "recipes": list(request.recipes)},
        "recipe_sha256": texts,
        "model": beginning.model,
        "model_sha256": model_digest(beginning.model),
        "adapter_sha256": None
        if beginning.adapter is None
        else file_digest(beginning.adapter / "adapter_model.safetensors"),
        "data_sha256": {pile.path: pile.sha256 for pile in stock.piles},
        "general_sha256": None if request.general is None else read(request.general).sha256,
        "reward_sha256": _sha256(Path(judge)) if request.reward and is_function(request.reward) else None,
    }


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _exam(
    request: Request, beginning: Beginning, entries: Sequence[Entry], stock: Stock, folder: Folder
) -> tuple[Exam, dict[str, Sequence[int]]]:
    """Write the held-out rows, the same for all results."""
    files: dict[str, str | None] = {}
    groups: dict[str, Sequence[int]] = {}
    for kind in KINDS:
        chosen = choose(stock.piles, kind, stock.split.groups)
        files[kind] = str(chosen.write(folder.held_out_rows / f"{kind}s.jsonl")) if chosen.examples else None
        groups[kind] = groups_of(chosen, stock.split)
    lengths = [entry.recipe.stages[-1].data.max_length for entry in entries if not entry.by_rollouts]
    exam = Exam(
        start=beginning.result,
        template=beginning.template,
        max_length=max(lengths, default=longest_row(request, beginning.model)),
        answers=files["demonstration"],
        comparisons=files["comparison"],
        prompts=files["prompt"],
        general=request.general,
        reward=request.reward,
        reward_timeout=request.reward_timeout,
        max_new_tokens=request.max_new_tokens,
        count=request.samples,
        seed=SAMPLING_SEED,
    )
    return exam, groups


def _about_data(stock: Stock) -> tuple[str, ...]:
    files = [f"{pile.path}: {len(pile.examples):,} {pile.kind}s ({pile.format})" for pile in stock.piles]
    split = stock.split
    return (
        *files,
        f"{len(split.held_out):,} prompts are held out of all training; results are measured on "
        f"{len(split.groups):,} of them",
    )


def _plan(
    request: Request, entries: Sequence[Entry], folder: Folder, shown: Board, threads: int
) -> tuple[Budget | None, dict[str, Course]]:
    """Check every entry by loading it, and find the steps that its budget buys, or take those of an earlier call."""
    kept = folder.kept(PLAN)
    if kept is not None:
        budget = None if kept["budget"] is None else Budget(**kept["budget"])
        return budget, {name: Course(**values) for name, values in kept["courses"].items()}
    looks = [Task(f"check {one.name}", partial(look_at, one.recipe.stages[0])) for one in entries]
    done = run_tasks(looks, shown, at_once=1, threads=threads)
    plans = {one.name: done[f"check {one.name}"].value for one in entries}
    budget, courses = request.budget, {}
    if request.budget is not None or not request.recipes:
        paces = _paces(request, entries, folder, shown, threads)
        budget = request.budget or default_budget(plans, paces)
        courses = {one.name: course(one.name, budget, plans[one.name], paces.get(one.name)) for one in entries}
        shown.say(f"budget of each: {budget}")
    values = {name: asdict(one) for name, one in courses.items()}
    folder.keep(PLAN, {"budget": None if budget is None else asdict(budget), "courses": values})
    return budget, courses


def _paces(
    request: Request, entries: Sequence[Entry], folder: Folder, shown: Board, threads: int
) -> Mapping[str, Pace]:
    """Train a few steps of every method whose costs are not known from its rows."""
    by_time = request.budget is not None and request.budget.unit == "time"
    below = folder.path / "calibration"
    shutil.rmtree(below, ignore_errors=True)
    tasks = []
    for entry in entries:
        if by_time or entry.by_rollouts:
            rollout = _steps_of_a_rollout(entry)
            short = entry.with_steps(CALIBRATION * rollout).recipe
            work = partial(calibrate, short, below / entry.name, rollout)
            tasks.append(Task(f"calibrate {entry.name}", work))
    done = run_tasks(tasks, shown, at_once=1, threads=threads)
    shutil.rmtree(below, ignore_errors=True)
    return {name.removeprefix("calibrate "): one.value for name, one in done.items()}


def _steps_of_a_rollout(entry: Entry) -> int:
    """Steps whose first one pays for the samples of all; 1 for methods that learn from rows."""
    if not entry.by_rollouts:
        return 1
    settings = entry.recipe.stages[0].rollout
    return (settings.epochs or entry.objective.rollout_epochs) * settings.mini_batches


def _training(entries: Sequence[Entry], courses: Mapping[str, Course], request: Request, folder: Folder) -> list[Task]:
    tasks = []
    for seed in range(request.seeds):
        for entry in entries:
            if folder.costs(entry.name, seed) is not None:
                continue
            ready = entry.with_steps(courses[entry.name].steps) if entry.name in courses else entry
            work = partial(
                train, ready.with_seed(seed), folder.run(entry.name, seed), folder.note(entry.name, seed, "costs")
            )
            tasks.append(Task(f"train {entry.name}-{seed}", work))
    return tasks


def _exams(beginning: Beginning, entries: Sequence[Entry], exam: Exam, request: Request, folder: Folder) -> list[Task]:
    results = {(START, 0): Path(beginning.result)}
    for entry in entries:
        for seed in range(request.seeds):
            costs = folder.costs(entry.name, seed)
            if costs is not None and costs.stopped is None:
                results[entry.name, seed] = folder.run(entry.name, seed)
    return [
        Task(f"measure {name}-{seed}" if name != START else "measure start", partial(examine, path, exam, note))
        for (name, seed), path in results.items()
        if not (note := folder.note(name, seed, "measured")).is_file()
    ]


def _told(name: str, done: Done) -> str:
    """The line about a finished piece of work."""
    if isinstance(done.value, StepPlan):
        return f"{name}: {len(done.value.sizes):,} rows to train on"
    if isinstance(done.value, Pace):
        return f"{name}: {done.value.seconds:.3g} s and {done.value.tokens:,.0f} tokens a step"
    if isinstance(done.value, Trained) and done.value.stopped is not None:
        return f"{name}: stopped after {done.seconds:.1f} s: {done.value.stopped}"
    return f"{name}: {done.seconds:.1f} s, peak {done.peak_bytes / 1e6:,.0f} MB"
