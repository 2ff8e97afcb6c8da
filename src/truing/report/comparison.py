"""Several runs over each other: a table, what their recipes do not share, the curves, and their last samples."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from truing.pages import page
from truing.pages.page import Section
from truing.pages.plotting import sample_of_line
from truing.report.curves import CROWD, of_several, reward_against_kl
from truing.report.details import SAMPLE_CHARACTERS, figure, flatten, in_bytes, in_time, recipe, shown
from truing.report.panels import MECHANICS, QUALITY, others, quality_of
from truing.report.runs import Run
from truing.report.verdict import NAMES, introduction
from truing.training.health import complaints

MOST_PROMPTS = 4
MOST_KEYS = 12
"""Differences beyond which their table is folded away."""


def comparison_sections(runs: Sequence[Run]) -> list[Section]:
    """The sections of the page, those without content left out."""
    known = set().union(*(run.metrics for run in runs))
    score = reward_against_kl(runs)
    curves = [] if score is None else [score]
    curves += [each for panel in (*QUALITY, *MECHANICS, *others(known)) for each in of_several(runs, panel)]
    parts = [
        ("Comparison", "comparison", [_table(runs), *_crowd_note(runs)]),
        ("What the recipes do not share", "differences", _differences(runs)),
        ("Complaints", "complaints", _complaints(runs)),
        ("Curves", "curves", [*_legend(runs), page.grid(curves)] if curves else []),
        ("Last samples", "samples", _samples(runs)),
        ("Recipes", "recipes", [page.folded(run.name, recipe(run)) for run in runs]),
    ]
    return [Section(title, anchor, tuple(each)) for title, anchor, each in parts if each]


def named(runs: Sequence[Run], place: str) -> list[Markup]:
    """The name of each run behind a sample of its line, where the lines can be told apart.

    `place` says where on the page the names stand.
    """
    if len(runs) > CROWD:
        return [page.text(run.name, 40) for run in runs]
    return [page.key(sample_of_line(index, place), run.name) for index, run in enumerate(runs)]


def _table(runs: Sequence[Run]) -> Markup:
    metrics = list(dict.fromkeys(quality_of(run.metrics) for run in runs if run.rows))
    metrics = [metric for metric in metrics if metric != "loss"]
    rows = [
        [
            name,
            introduction(run),
            str(run.steps),
            figure(run.last("loss")),
            *(figure(run.last(metric)) for metric in metrics),
            figure(run.last("objective/kl")),
            "–" if run.peak_memory_bytes is None else in_bytes(run.peak_memory_bytes),
            in_time(run.seconds),
        ]
        for name, run in zip(named(runs, "table"), runs, strict=True)
    ]
    names = [NAMES[metric].lower() for metric in metrics]
    headers = ["run", "what", "steps", "loss", *names, "KL", "peak memory", "time"]
    keep = [place for place in range(len(headers)) if any(row[place] != "–" for row in rows)]
    numeric = {index for index, place in enumerate(keep) if place > 1}
    return page.table([headers[place] for place in keep], [[row[place] for place in keep] for row in rows], numeric)


def _legend(runs: Sequence[Run]) -> list[Markup]:
    return [] if len(runs) > CROWD else [page.legend(named(runs, "legend"))]


def _crowd_note(runs: Sequence[Run]) -> list[Markup]:
    if len(runs) <= CROWD:
        return []
    return [
        page.note(
            f"{len(runs)} curves share each figure, so they are drawn thin and without a legend; to tell runs apart, "
            f"report at most {CROWD} of them."
        )
    ]


def _differences(runs: Sequence[Run]) -> list[Markup]:
    """Keys of the recipes on which at least two runs differ."""
    flat = [dict(flatten(run.stage)) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each)
    differing = [key for key in keys if len({shown(each.get(key)) for each in flat}) > 1]
    if not differing:
        return [page.paragraph("Nothing: these runs have the same recipe.")]
    names = named(runs, "differences")
    cells = [[page.text(shown(each.get(key)), 120) for key in differing] for each in flat]
    if len(runs) > CROWD:
        found = page.table(["run", *differing], [[name, *row] for name, row in zip(names, cells, strict=True)])
    else:
        by_key = zip(differing, zip(*cells, strict=True), strict=True)
        found = page.table(["", *names], [[key, *row] for key, row in by_key])
    few = len(differing) <= MOST_KEYS and len(runs) <= CROWD
    return [found] if few else [page.folded(f"{len(differing)} keys", [found])]


def _complaints(runs: Sequence[Run]) -> list[Markup]:
    """A row a complaint; folded away where there are very many runs."""
    rows: list[tuple[str, str, str]] = []
    quiet = []
    for run in runs:
        found = complaints(run.rows, run.facts)
        rows += [(run.name, shown(each.step), each.sentence) for each in found]
        rows += [(run.name, "–", each) for each in run.notes]
        quiet += [] if found or run.notes else [run.name]
    parts = [page.good(f"No figure left its healthy range: {', '.join(quiet)}.")] if quiet else []
    if not rows:
        return parts
    listed = page.table(["run", "step", "what"], rows, numeric={1}, texts={2})
    summary = f"{len(rows)} complaints about {len(runs) - len(quiet)} of {len(runs)} runs"
    return [*parts, listed if len(runs) <= CROWD else page.folded(summary, [listed])]


def _samples(runs: Sequence[Run]) -> list[Markup]:
    """What each run wrote last for the prompts that the most runs share."""
    last = [{str(row.get("prompt", "")): row for row in run.samples} for run in runs]
    counts = {prompt: sum(prompt in each for each in last) for each in last for prompt in each}
    parts = []
    for prompt in sorted(counts, key=lambda prompt: -counts[prompt])[:MOST_PROMPTS]:
        written = [(run.name, each[prompt]) for run, each in zip(runs, last, strict=True) if prompt in each]
        rows = [
            [name, shown(row.get("step")), page.text(str(row.get("completion", "")), SAMPLE_CHARACTERS)]
            for name, row in written[:CROWD]
        ]
        parts.append(page.preformatted(prompt[-SAMPLE_CHARACTERS:]))
        parts.append(page.table(["run", "step", "completion"], rows, numeric={1}, texts={2}))
    return parts
