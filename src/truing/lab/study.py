"""Studies: experiments on the world, each described in a file, whose figures and table one command makes again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from truing.core.errors import MachineError
from truing.evaluate.board import board
from truing.evaluate.processes import Done
from truing.lab.arms import Experiment, Outcome
from truing.lab.experiment import by_arm, run_experiment
from truing.lab.study_figures import study_figure
from truing.lab.study_settings import StudySettings, load_study, to_experiment
from truing.lab.study_tables import study_tables
from truing.lab.summary import summarise
from truing.pages.plotting import to_file
from truing.training.run_directory import replace_file


def run_study(file: Path, output: Path, results: Path) -> list[Path]:
    """Run what a study's file describes and is not done yet; write its table, figures and numbers."""
    settings = load_study(file)
    experiment = to_experiment(settings)
    _check_target(results)
    with board(_ended) as shown:
        shown.say(f"{settings.title}: {len(experiment.arms)} arms, {settings.seeds} seeds")
        outcomes = run_experiment(experiment, output, shown, at_once=min(2, os.cpu_count() or 1))
        written = write_results(settings, experiment, outcomes, file, results)
        for target in written:
            shown.say(f"  {target}")
    return written


def _ended(name: str, done: Done) -> str:
    if isinstance(done.value, Outcome) and done.value.reward:
        return f"✓ {name}, {done.seconds:.0f} s: true reward {fmean(done.value.reward):.3f}"
    return f"✓ {name}, {done.seconds:.0f} s"


def _check_target(results: Path) -> None:
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise MachineError(f"{results}: cannot make the folder of results ({fault.strerror})") from fault


def write_results(
    settings: StudySettings,
    experiment: Experiment,
    outcomes: Sequence[Outcome],
    file: Path,
    results: Path,
) -> list[Path]:
    """Write the table as Markdown, the figures as SVG, and the numbers as JSON, named after the study's file."""
    summary = summarise(experiment, outcomes)
    found = ["## What was found", "", *(f"- {finding}" for finding in settings.findings), ""]
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    pictures = []
    for number, asked in enumerate(settings.figures):
        picture = results / f"{file.stem}{'' if number == 0 else f'-{number + 1}'}.svg"
        to_file(study_figure(asked, experiment, summary, outcomes), picture)
        pictures.append(picture)
    lines = [
        f"# {settings.title}",
        "",
        settings.question,
        "",
        *(line for picture in pictures for line in (f"![{settings.title}]({picture.name})", "")),
        *(found if settings.findings else []),
        *study_tables(settings.figures, experiment, summary, outcomes),
        "## How",
        "",
        f"`truing study studies/{file.name}`; {_machine()}, {minutes:.0f} minutes of training on one thread a run. "
        f"{settings.seeds} seeds of data, reference and arms over one base model; expected true reward over all "
        f"{103_680:,} answers to each of {settings.prompts} held-out prompts. Intervals are 95 %, {summary.basis}.",
        "",
    ]
    table, numbers = results / f"{file.stem}.md", results / f"{file.stem}.json"
    replace_file(table, "\n".join(lines))
    replace_file(numbers, json.dumps(_numbers(outcomes), separators=(",", ":")) + "\n")
    return [table, *pictures, numbers]


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _numbers(outcomes: Sequence[Outcome]) -> dict[str, list[dict[str, Any]]]:
    """What the table and the figures are made of, with four digits."""

    def short(values: Sequence[float]) -> list[float]:
        return [float(f"{value:.4g}") for value in values]

    return {
        name: [
            {
                "seed": one.seed,
                "reward": short(one.reward),
                "kl": short(one.kl),
                "looks": [[look.step, *short([look.reward, look.kl])] for look in one.looks],
                "best_of": [[b.count, *short([fmean(b.reward), fmean(b.kl), fmean(b.proxy)])] for b in one.best_of],
                "seconds": float(f"{one.seconds:.3g}"),
                "rows": one.rows,
            }
            for one in found
        ]
        for name, found in by_arm(outcomes).items()
    }
