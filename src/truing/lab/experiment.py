"""Runs an experiment: data, base model, then every arm with every seed, side by side in processes of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from truing.core.errors import MachineError, RunError
from truing.evaluate.processes import Board, Call, Done, Task, run_tasks
from truing.lab import truth
from truing.lab.arms import BASE, REFERENCE, TRUTH, Arm, Experiment, Job, Outcome
from truing.lab.terms import terms_of, terms_of_base
from truing.training.progress import Reporter
from truing.training.run_directory import replace_file
from truing.world.records import WorldSettings, write_file
from truing.world.reviews import REVIEWS

TOKENS = 32
"""Of a prompt with its answer at most."""
ANSWER_TOKENS = 16
"""More than the longest answer has."""
WORK = "truing.lab.work"
CHECKED = "recipes"
"""The task that looks at all recipes."""

OUTCOME = "outcome.json"
SHARED = ("test_pairs", "general")
"""Data files that arms are measured on."""

SHOWN_PROMPTS = tuple(prompt.text for prompt in REVIEWS.held_out[:3])
"""Prompts whose answers are shown: one of each verdict."""


@dataclass(frozen=True, slots=True)
class Laboratory:
    """Where an experiment's files lie."""

    folder: Path

    def run(self, arm: str, seed: int) -> Path:
        """The run directory of an arm."""
        return self.folder / "base" if arm == BASE else self.folder / f"seed-{seed}" / _folder(arm)

    def seed(self, seed: int) -> Path:
        """What all arms of a seed share."""
        return self.folder / f"seed-{seed}"

    def recipe(self, arm: str, seed: int) -> Path:
        """The recipe of an arm."""
        name = _folder(arm)
        return self.folder / "recipes" / (f"{name}.yaml" if seed == 0 or arm == BASE else f"{name}-seed-{seed}.yaml")

    def outcome(self, arm: str, seed: int) -> Path:
        """What came out of an arm, and on which terms; it is written last."""
        return self.folder / f"seed-{seed}" / f"{_folder(arm)}.{OUTCOME}"

    @property
    def base_terms(self) -> Path:
        """On which terms the base model was made; it is written last."""
        return self.folder / "base.terms"

    def keep(self, outcome: Outcome, terms: str) -> None:
        """Write an outcome down."""
        values = {"terms": terms, **outcome.as_json()}
        replace_file(self.outcome(outcome.arm, outcome.seed), json.dumps(values, ensure_ascii=False) + "\n")

    def kept(self, experiment: Experiment, arm: str, seed: int) -> Outcome | None:
        """The outcome of an arm, where there is one on the terms of this experiment."""
        file = self.outcome(arm, seed)
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return Outcome.from_json(values) if values.pop("terms", "") == terms_of(experiment, arm) else None
        except (ValueError, TypeError, LookupError, AttributeError) as fault:
            raise RunError(f"{file} cannot be read ({fault}); delete it to have its arm run again") from fault

    def has_base(self, experiment: Experiment) -> bool:
        """Whether the base model of this experiment is there."""
        if not (self.run(BASE, 0) / "final").is_dir() or not self.base_terms.is_file():
            return False
        return self.base_terms.read_text(encoding="utf-8") == terms_of_base(experiment)


def run_experiment(
    experiment: Experiment, folder: Path, board: Board, *, at_once: int = 2, threads: int = 1
) -> list[Outcome]:
    """Run what is not done yet into `folder`; return all outcomes, the base model's first, seed by seed.

    The same experiment in the same folder continues where it was stopped: an arm that was begun is begun anew. An arm
    whose settings, or those of what it uses, have changed since is run again.
    """
    laboratory = Laboratory(folder.resolve())
    _write_data(experiment, laboratory)
    tasks = _tasks(experiment, laboratory)
    names = {task.name for task in tasks}
    open_ended = [Task(t.name, t.work, tuple(n for n in t.needs if n in names)) for t in tasks]
    run_tasks(open_ended, _Keeping(board, laboratory, experiment), at_once=at_once, threads=threads)
    return read_outcomes(experiment, folder)


def read_outcomes(experiment: Experiment, folder: Path) -> list[Outcome]:
    """What a finished experiment gave, the base model's first, seed by seed."""
    laboratory = Laboratory(folder.resolve())
    found = []
    for seed in experiment.seeds:
        for arm in (BASE, *(arm.name for arm in experiment.arms)):
            outcome = laboratory.kept(experiment, arm, seed)
            if outcome is None:
                raise RunError(f"{folder} has no outcome of '{arm}' with seed {seed}; run the experiment again")
            found.append(outcome)
    return found


class _Keeping:
    """Writes every outcome down as soon as it is there, and passes everything on."""

    def __init__(self, board: Board, laboratory: Laboratory, experiment: Experiment) -> None:
        self._board, self._laboratory, self._experiment = board, laboratory, experiment

    def started(self, name: str) -> Reporter:
        return self._board.started(name)

    def finished(self, name: str, done: Done) -> None:
        if isinstance(done.value, Outcome):
            self._laboratory.keep(done.value, terms_of(self._experiment, done.value.arm))
        elif name == BASE:
            replace_file(self._laboratory.base_terms, terms_of_base(self._experiment))
        self._board.finished(name, done)


def _write_data(experiment: Experiment, laboratory: Laboratory) -> None:
    """Write the data of what is left to do: on other terms the same file may hold other rows."""
    if not laboratory.has_base(experiment):
        write_file(laboratory.folder / "data", "corpus", experiment.world)
    for seed in experiment.seeds:
        left = [arm for arm in experiment.arms if laboratory.kept(experiment, arm.name, seed) is None]
        for target, arm in {_data_file(laboratory, arm, seed, arm.data): arm for arm in left}.items():
            write_file(target.parent, arm.data, _world(experiment, arm, seed))
        for name in SHARED if left else ():
            write_file(laboratory.seed(seed) / "data", name, experiment.world.model_copy(update={"seed": seed}))


def _world(experiment: Experiment, arm: Arm, seed: int) -> WorldSettings:
    return WorldSettings(**{**experiment.world.model_dump(), **arm.world, "seed": seed})


def _data_file(laboratory: Laboratory, arm: Arm, seed: int, name: str) -> Path:
    knobs = "-".join(f"{knob}-{value}" for knob, value in sorted(arm.world.items()))
    return laboratory.seed(seed) / "data" / knobs / f"{name}.jsonl"


def _tasks(experiment: Experiment, laboratory: Laboratory) -> list[Task]:
    """What is left to do; every recipe is checked before anything is trained."""
    tasks: list[Task] = []
    recipes: list[Path] = []
    if not laboratory.has_base(experiment):
        tasks.append(_base_task(experiment, laboratory))
    several = len(experiment.seeds) > 1

    def named(arm: str, seed: int) -> str:
        return f"{arm}, seed {seed}" if several else arm

    for seed in experiment.seeds:
        for arm in experiment.arms:
            if laboratory.kept(experiment, arm.name, seed) is not None:
                continue
            job = _job(experiment, laboratory, arm, seed)
            needs = [named(name, seed) for name in (arm.start, arm.reward) if name not in (None, TRUTH, BASE)]
            needs += [named(REFERENCE, seed)] if arm.name != REFERENCE else []
            recipes.append(job.recipe)
            tasks.append(Task(named(arm.name, seed), Call(WORK, "train_arm", (job,)), (CHECKED, BASE, *needs)))
        if laboratory.kept(experiment, BASE, seed) is None:
            job = _base_job(experiment, laboratory, seed)
            name = named(f"{BASE}, measured", seed)
            tasks.append(Task(name, Call(WORK, "measure_base", (job,)), (CHECKED, BASE, named(REFERENCE, seed))))
    return [Task(CHECKED, Call(WORK, "check_recipes", (tuple(recipes),))), *tasks] if tasks else []


def _base_task(experiment: Experiment, laboratory: Laboratory) -> Task:
    recipe = laboratory.recipe(BASE, 0)
    corpus = laboratory.folder / "data" / "corpus.jsonl"
    stage = {
        "model": str(laboratory.folder / "blank"),
        "adapter": "none",
        "data": {"path": str(corpus), "max_length": TOKENS, "loss_on": "all"},
        **_quiet(),
        **experiment.base,
    }
    _write_recipe(recipe, stage)
    where = (laboratory.folder / "blank", recipe, _fresh(laboratory.run(BASE, 0)))
    return Task(BASE, Call(WORK, "train_base", where), (CHECKED,))


def _base_job(experiment: Experiment, laboratory: Laboratory, seed: int) -> Job:
    arm = Arm(BASE, {"objective": {"use": "sft"}}, "corpus", start=BASE)
    recipe, folder = laboratory.recipe(BASE, 0), laboratory.run(BASE, 0)
    return Job(arm, seed, recipe, folder, laboratory.seed(seed), None, experiment.prompts, 0)


def _job(experiment: Experiment, laboratory: Laboratory, arm: Arm, seed: int) -> Job:
    recipe = laboratory.recipe(arm.name, seed)
    _write_recipe(recipe, _recipe(experiment, laboratory, arm, seed))
    proxy = arm.reward if arm.reward not in (None, TRUTH) else None
    return Job(
        arm,
        seed,
        recipe,
        _fresh(laboratory.run(arm.name, seed)),
        laboratory.seed(seed),
        proxy,
        experiment.prompts,
        experiment.looks,
    )


def _recipe(experiment: Experiment, laboratory: Laboratory, arm: Arm, seed: int) -> dict[str, Any]:
    """A recipe that runs by itself, as any other."""
    start, base = _start(experiment, laboratory, arm, seed)
    adapter = arm.stage.get("adapter", {"use": "lora", "rank": 8})
    data: dict[str, Any] = {
        "path": str(_data_file(laboratory, arm, seed, arm.data)),
        "max_length": TOKENS,
        **arm.stage.get("data", {}),
    }
    if arm.scores:
        data["eval_path"] = str(laboratory.seed(seed) / "data" / "test_pairs.jsonl")
    if start is not None:
        adapter = {**adapter, "start": str(start)}
    recipe = {"model": str(base), "adapter": adapter, **_quiet(), **arm.stage, "data": data, "seed": seed}
    recipe["adapter"] = adapter
    if "forgetting" in arm.stage:
        general = laboratory.seed(seed) / "data" / "general.jsonl"
        recipe["forgetting"] = {"path": str(general), **arm.stage["forgetting"]}
    if arm.reward is not None:
        pays = f"{Path(truth.__file__)}:true_rewards" if arm.reward == TRUTH else str(laboratory.run(arm.reward, seed))
        asked = {"max_new_tokens": ANSWER_TOKENS, **arm.stage.get("rollout", {}), "rewards": [pays]}
        recipe["rollout"] = asked
    if experiment.looks and arm.name != REFERENCE and not arm.scores:
        steps = arm.stage["optim"]["max_steps"]
        recipe["evaluation"] = {"every": max(1, round(steps / (experiment.looks + 1)))}
    return recipe


def _start(experiment: Experiment, laboratory: Laboratory, arm: Arm, seed: int) -> tuple[Path | None, Path]:
    """The adapter that an arm starts from, if any, and the model below it."""
    if arm.start == BASE:
        return None, laboratory.run(BASE, 0) / "final"
    above = next(other for other in experiment.arms if other.name == arm.start)
    final = laboratory.run(above.name, seed) / "final"
    if above.stage.get("adapter") == "none":
        return None, final
    return final, _start(experiment, laboratory, above, seed)[1]


def _quiet() -> Mapping[str, Any]:
    """What every arm has: answers to a few prompts, no checkpoints, and the same arithmetic on every run."""
    return {
        "samples": {"prompts": list(SHOWN_PROMPTS), "max_new_tokens": ANSWER_TOKENS},
        "checkpoint": {"every": 100_000},
        "precision": {"matmul": "highest"},
    }


def _fresh(folder: Path) -> Path:
    """A run directory that was left unfinished is of no use here."""
    if folder.exists():
        shutil.rmtree(folder)
    return folder


def _folder(arm: str) -> str:
    return Arm(arm, {}, "").folder


def _write_recipe(file: Path, recipe: Mapping[str, Any]) -> None:
    """Write a recipe where a person can find and change it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
    except OSError as fault:
        raise MachineError(f"{file}: cannot write the recipe ({fault.strerror}); choose another folder") from fault


def by_arm(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes of each arm, seed by seed, arms in their order."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.arm, []).append(outcome)
    return found
