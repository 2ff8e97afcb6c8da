"""What the processes of an experiment do: train one arm through its recipe, and measure what came out exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from truing.build.chain import run
from truing.build.load_result import open_result, open_scorer
from truing.evaluate.exact import Exact, Yardstick
from truing.lab.arms import REFERENCE, BestOf, Job, Level, Look, Outcome
from truing.models.language_model import LanguageModel
from truing.models.loading import load_tokenizer
from truing.objectives.registry import create
from truing.recipe.load import load_recipe
from truing.training.progress import Reporter
from truing.world.base_model import write_base_model
from truing.world.reward import true_reward

LEAST = 1e-5
"""Prefixes less probable than this are not followed while an arm is trained: 0.5 % of the probability, and a third of
the time."""
SPIKE = 10.0
"""Times the median gradient norm."""
YARDSTICK = "yardstick.npz"
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Samples of which the best is taken."""


def check_recipes(recipes: Sequence[Path], reporter: Reporter) -> None:
    """Find a wrong key or value in any of the recipes before the first of them is run."""
    for recipe in recipes:
        for stage in load_recipe(recipe).stages:
            create(stage.objective)


def train_base(blank: Path, recipe: Path, folder: Path, reporter: Reporter) -> None:
    """Make a blank model, and train it into the base model that all arms come from."""
    write_base_model(blank)
    run(load_recipe(recipe), folder, reporter)


def train_arm(job: Job, reporter: Reporter) -> Outcome:
    """Train an arm and measure it; the reference's yardstick, or a reward model's scores, are kept for the others."""
    if job.arm.scores:
        run(load_recipe(job.recipe), job.run, reporter)
        return _of_reward_model(job)
    if job.arm.name == REFERENCE:
        final = run(load_recipe(job.recipe), job.run, reporter)
        yardstick = Yardstick.of(open_result(final), count=job.prompts)
        yardstick.save(job.seed_folder / YARDSTICK)
        levels = tuple(Level(tuple(one.rewards.tolist()), tuple(one.masses.tolist())) for one in yardstick.levels)
        return replace(_outcome(job, yardstick.of_reference(), ()), levels=levels)
    yardstick = _yardstick(job)
    looks = _Looks(yardstick)
    final = run(load_recipe(job.recipe), job.run, reporter, looks if job.looks else None)
    return _outcome(job, yardstick.measure(open_result(final)), _looks(job.run))


def measure_base(job: Job, reporter: Reporter) -> Outcome:
    """Measure the base model with a seed's yardstick."""
    return _outcome(job, _yardstick(job).measure(open_result(job.run)), ())


def proxy_file(seed_folder: Path, arm: str) -> Path:
    """Where the scores of a reward model lie."""
    return seed_folder / f"{arm}-scores.npy"


def _yardstick(job: Job) -> Yardstick:
    found = Yardstick.load(job.seed_folder / YARDSTICK)
    if job.proxy is None:
        return found
    scores = np.load(proxy_file(job.seed_folder, job.proxy), allow_pickle=False)
    return found.with_scores("proxy", scores)


class _Looks:
    """A probe: the policy in training, measured nearly exactly."""

    def __init__(self, yardstick: Yardstick) -> None:
        self._yardstick = yardstick
        self._tokenizer: Any = None

    def __call__(self, model: LanguageModel) -> Mapping[str, float]:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(Path(str(model.module.config._name_or_path)))
        means = self._yardstick.measure_model(model, self._tokenizer, least=LEAST).means()
        return {f"exact/{name}": value for name, value in means.items()}


def _looks(folder: Path) -> tuple[Look, ...]:
    return tuple(
        Look(row["step"], row["exact/reward"], row["exact/kl"], row.get("exact/proxy/proxy"))
        for row in read_rows(folder / "metrics.jsonl")
        if "exact/reward" in row
    )


def _of_reward_model(job: Job) -> Outcome:
    yardstick = Yardstick.load(job.seed_folder / YARDSTICK).with_proxy("proxy", open_scorer(job.run))
    np.save(proxy_file(job.seed_folder, job.arm.name), yardstick.proxies["proxy"])
    columns = zip(yardstick.proxies["proxy"], yardstick.rewards, np.exp(yardstick.answers), strict=True)
    correlations = [_correlation(*column) for column in columns]
    found = _outcome(job, None, (), {"correlation": float(np.mean(correlations))})
    return replace(found, best_of=tuple(_best_of(yardstick, count) for count in COUNTS))


def _best_of(yardstick: Yardstick, count: int) -> BestOf:
    points = yardstick.best_of("proxy", count)
    return BestOf(count, tuple(p.reward for p in points), tuple(p.kl for p in points), tuple(p.proxy for p in points))


def _correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    """Pearson's, between score and truth, of answers as the reference gives them."""
    weights = weights / weights.sum()
    a, b = a - a @ weights, b - b @ weights
    return float((a * b) @ weights / np.sqrt(((a * a) @ weights) * ((b * b) @ weights)))


def _outcome(
    job: Job, exact: Exact | None, looks: Sequence[Look], figures: Mapping[str, float] | None = None
) -> Outcome:
    rows = read_rows(job.run / "metrics.jsonl")
    last = rows[-1]
    norms = np.array([row["grad_norm"] for row in rows if row["grad_norm"] is not None])
    looked = next((place for place, row in enumerate(rows) if "exact/reward" in row), len(rows))
    told = {name: value for name, value in last.items() if isinstance(value, float) and not name.startswith("exact/")}
    return Outcome(
        arm=job.arm.name,
        seed=job.seed,
        reward=() if exact is None else tuple(exact.reward.tolist()),
        kl=() if exact is None else tuple(exact.kl.tolist()),
        figures={**told, **(figures or {}), **({} if exact is None else exact.means())},
        looks=tuple(looks),
        rows=int(last["rows"]),
        steps=int(last["step"]),
        seconds=float(sum(row["seconds"] for row in rows)),
        bytes=int(rows[max(0, looked - 1)]["memory_bytes"]),  # looking takes memory that training does not
        parameters=int(json.loads((job.run / "plan.json").read_text(encoding="utf-8"))["trained_parameters"]),
        skipped=int(last["skipped_steps"]),
        spikes=int((norms > SPIKE * np.median(norms)).sum()),
        answers=() if exact is None else _answers(job.run, int(last["step"])),
    )


def _answers(folder: Path, last: int) -> tuple[tuple[str, str, float], ...]:
    rows = [row for row in read_rows(folder / "samples.jsonl") if row["step"] == last]
    return tuple(
        (row["prompt"], row["completion"].strip(), true_reward(row["prompt"], row["completion"])) for row in rows
    )


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines; none where the run wrote no such file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
