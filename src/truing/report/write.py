"""`truing report`: from run directories to one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from truing.core.errors import MachineError, RunError
from truing.pages import page
from truing.pages.page import Section
from truing.report.comparison import comparison_sections
from truing.report.curves import of_one, reward_against_kl
from truing.report.details import data, environment, forgetting, memory_and_time, parity, recipe, repeat, samples
from truing.report.panels import MECHANICS, QUALITY, others
from truing.report.runs import Run, find_runs, read_run, stages_of
from truing.report.verdict import verdict
from truing.training.health import complaints
from truing.training.run_directory import replace_file
from truing.training.signs import Complaint

FILE = "report.html"


def write_report(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of one run, of a chain, or of several runs over each other; return where it is.

    By default that is RUN/report.html; of several runs, report.html in the nearest folder that holds them all. Raises
    RunError where a path is no run.
    """
    unique = list(dict.fromkeys(paths))
    target = output or _beside(unique)
    html = report_page(unique)
    try:
        if target.is_dir():
            raise RunError(f"{target} is a folder; give --output a file such as {target / FILE}")
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, html)
    except OSError as failure:
        raise MachineError(f"cannot write {target}: {failure.strerror}") from failure
    return target


def report_page(paths: Sequence[Path]) -> str:
    """The page as HTML."""
    if len(paths) > 1:
        runs = [run for path in paths for run in _read(path)]
        lead = f"{len(runs)} runs over each other, in the order in which they were given."
        return page.page("Comparison of runs", lead, comparison_sections(_distinct(runs)))
    runs = _read(paths[0])
    title = f"Run {paths[0].resolve().name}"
    if len(runs) == 1:
        return page.page(title, str(paths[0]), _sections(runs[0]))
    again = Section("Repeat it", "repeat", (repeat(paths[0]),))
    return page.page(title, f"{paths[0]}, a chain of {len(runs)} stages", [*_of_chain(runs), again])


def _beside(paths: Sequence[Path]) -> Path:
    if len(paths) == 1:
        return paths[0] / FILE
    return Path(os.path.commonpath([path.resolve().parent for path in paths])) / FILE


def _read(path: Path) -> list[Run]:
    """The run, or the stages of the chain."""
    stages = stages_of(path)
    if stages:
        return [read_run(stage, f"{path.resolve().name}/{stage.name}") for stage in stages]
    if path.is_dir() and not (path / "recipe.yaml").is_file() and not (path / "metrics.jsonl").is_file():
        below = find_runs(path)
        if below:
            named = "\n".join(f"  {run}" for run in below[:20])
            more = f"\n  and {len(below) - 20} more" if len(below) > 20 else ""
            raise RunError(f"{path} is not a run but holds {len(below)}; name those that you mean:\n{named}{more}")
    return [read_run(path)]


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """Runs whose names tell them apart: by their path, where two have the same name."""
    names = [run.name for run in runs]
    return [run.renamed(str(run.path)) if names.count(run.name) > 1 else run for run in runs]


def _sections(run: Run) -> list[Section]:
    found = complaints(run.rows, run.facts)
    parts = _parts(run, found)
    return [Section("Verdict", "verdict", tuple(verdict(run, found)))] + [
        Section(title, title.lower().split()[0], tuple(each)) for title, each in parts
    ]


def _of_chain(runs: Sequence[Run]) -> list[Section]:
    """A verdict on every stage, then a section a stage."""
    judged = [(run, complaints(run.rows, run.facts)) for run in runs]
    first: list[Markup] = []
    for run, found in judged:
        first += [page.heading(run.path.name), *verdict(run, found)]
    sections = [Section("Verdict", "verdict", tuple(first))]
    for index, (run, found) in enumerate(judged):
        parts = [part for title, each in _parts(run, found) for part in (page.heading(title), *each)]
        sections.append(Section(f"Stage {run.path.name}", f"stage-{index + 1}", tuple(parts)))
    return sections


def _parts(run: Run, found: Sequence[Complaint]) -> list[tuple[str, list[Markup]]]:
    """Titled parts of a run's report, those without content left out."""
    quality = [reward_against_kl([run]), *(of_one(run, panel, found) for panel in QUALITY)]
    mechanics = [of_one(run, panel, found) for panel in MECHANICS]
    own = [of_one(run, panel, found) for panel in others(run.metrics)]
    parts = [
        ("Curves", _grid(quality)),
        ("Mechanics of training", _grid(mechanics)),
        ("Other figures", _grid(own)),
        ("Samples over time", samples(run)),
        ("Data", data(run)),
        ("As served", parity(run)),
        ("Memory and time", [*memory_and_time(run), *forgetting(run), *environment(run)]),
        ("Repeat it", recipe(run)),
    ]
    return [(title, each) for title, each in parts if each]


def _grid(figures: Sequence[Markup | None]) -> list[Markup]:
    kept = [each for each in figures if each is not None]
    return [page.grid(kept)] if kept else []
