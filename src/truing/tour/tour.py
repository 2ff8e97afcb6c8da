"""The first run: a small world whose optimum is known exactly, and every method measured against it."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from truing.core.errors import RunError
from truing.evaluate.board import LineBoard, LiveBoard, board
from truing.evaluate.processes import Done
from truing.lab.arms import BASE, Experiment, Outcome
from truing.lab.experiment import CHECKED, run_experiment
from truing.lab.figures import answers_of
from truing.lab.summary import Summary, summarise
from truing.tour.advice import conclusions, recommendation
from truing.tour.arms import tour_experiment
from truing.tour.page import BEST_OF, tour_page
from truing.training.run_directory import replace_file

MARK = "tour.json"
"""Written first: a folder with it is a tour of ours, and may be begun anew."""

REPORT = "report.html"


def run_tour(output: Path, *, seeds: int = 1, quick: bool = False) -> Summary:
    """Run the tour into `output`; a former tour there is begun anew."""
    began = time.perf_counter()
    _clear(output)
    experiment = tour_experiment(tuple(range(seeds)), quick=quick)
    why = {arm.name: arm.why for arm in experiment.arms} | {
        BASE: "0.07 million weights learn to write reviews, good and bad alike"
    }
    with board(_ended, lambda name: _announced(name, why)) as shown:
        shown.say(
            "A small world of short reviews. Its true reward is a program, and every answer to a prompt can be gone\n"
            "through, so what each method did is computed exactly, and so is the best that was possible.\n"
        )
        outcomes = run_experiment(experiment, output, shown, at_once=min(2, os.cpu_count() or 1))
        summary = summarise(experiment, outcomes, BEST_OF)
        seconds = time.perf_counter() - began
        _write(output, experiment, summary, outcomes, seconds)
        _tell(output, experiment, summary, outcomes, shown)
        shown.say(f"\n{time.perf_counter() - began:.0f} s in all. The page with the figures: {output / REPORT}")
        shown.say(_next(output))
    return summary


def _announced(name: str, why: dict[str, str]) -> str:
    arm = name.split(", seed")[0]
    return f"{name}: {why[arm]}" if why.get(arm) else ""


def _ended(name: str, done: Done) -> str:
    if not isinstance(done.value, Outcome):
        return f"✓ {name}, {done.seconds:.0f} s" if name != CHECKED else "✓ all recipes are in order"
    outcome = done.value
    if not outcome.reward:
        agrees = outcome.figures["eval_accuracy"]
        return f"✓ {name}, {done.seconds:.0f} s: agrees with {agrees:.0%} of held-out comparisons"
    return f"✓ {name}, {done.seconds:.0f} s: true reward {fmean(outcome.reward):.2f} at KL {fmean(outcome.kl):.2f}"


def _clear(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        if not (output / MARK).is_file():
            raise RunError(f"{output} is not empty and holds no tour; give another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARK).write_text("{}\n", encoding="utf-8")


def _write(output: Path, experiment: Experiment, summary: Summary, outcomes: Sequence[Outcome], seconds: float) -> None:
    result: dict[str, Any] = {
        row.arm: {
            "true_reward": row.reward.mean,
            "half_width_95": None if math.isinf(row.reward.half) else row.reward.half,
            "kl": row.kl,
            "regret": row.regret,
            "proxy": row.proxy,
            "rows": row.rows,
            "seconds": row.seconds,
            "peak_bytes": row.bytes,
            "trained_parameters": row.parameters,
            "stability": row.stability,
        }
        for row in summary.rows
    }
    replace_file(output / MARK, json.dumps(result, indent=2) + "\n")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {seconds:.0f} s in all."
    command = f"truing tour --seeds {summary.seeds}{' --quick' if experiment.looks == 0 else ''} --output {output}"
    replace_file(output / REPORT, tour_page(experiment, summary, outcomes, machine, command))


def _tell(
    output: Path, experiment: Experiment, summary: Summary, outcomes: Sequence[Outcome], shown: LiveBoard | LineBoard
) -> None:
    shown.say("\nThe same prompts, answered by every model: the likeliest answer and its true reward")
    for prompt, told in answers_of(outcomes).items():
        shown.say(f"  {prompt}")
        for arm, answer, reward in told:
            shown.say(f"    {arm:<18} {reward:4.2f}  {answer}")
    shown.say(f"\nExact expected true reward (0 to 1; 95 % intervals {summary.basis}), KL from sft, and what the exact")
    shown.say("optimum of the same KL has more")
    shown.say(f"  {'':<18} {'true reward':<15} {'KL':>5} {'regret':>7} {'seconds':>8} {'MB':>5} {'trained':>8}")
    for row in summary.rows:
        bar = "█" * round(20 * row.reward.mean)
        shown.say(
            f"  {row.arm:<18} {row.reward!s:<15} {row.kl:5.2f} {row.regret:7.2f} {row.seconds:8.1f} "
            f"{row.bytes / 1e6:5.0f} {row.parameters:8,}  {bar}"
        )
    shown.say("\nWhat followed")
    for sentence in conclusions(summary):
        shown.say(_wrapped(sentence))
    shown.say("\nWhat to try first on your own data")
    shown.say(_wrapped(recommendation(summary)))


def _wrapped(text: str, width: int = 100) -> str:
    lines, line = [], "  "
    for word in text.split():
        if len(line) + len(word) + 1 > width:
            lines.append(line)
            line = "  "
        line += f"{'' if line == '  ' else ' '}{word}"
    return "\n".join([*lines, line])


def _next(output: Path) -> str:
    dpo = output / "seed-0" / "dpo"
    return (
        f"The recipes are in {output / 'recipes'}; each runs by itself:\n"
        f"  truing train {output / 'recipes' / 'dpo.yaml'} --set optim.lr=1e-4 --output runs/mine\n"
        f'  truing chat {dpo} --prompt "Five stars for the corner bakery:" --compare-to {output / "base"}\n'
        f"  truing report {dpo} {output / 'seed-0' / 'kto'}"
    )
