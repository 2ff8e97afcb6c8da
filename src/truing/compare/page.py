"""report.html of a comparison: one file with the table, figures, completions side by side, and how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from truing.compare.charts import bars, intervals
from truing.compare.costs import Costs
from truing.compare.folder import START
from truing.compare.standing import ACCURACY, FORGETTING, KL, LOSS, WINS, WINS_AT_LENGTH, Figure
from truing.compare.table import GROUPS
from truing.compare.verdict import Verdict, cell, off
from truing.pages import page
from truing.pages.page import Section
from truing.report.comparison import named
from truing.report.curves import of_several
from truing.report.details import in_bytes, in_time
from truing.report.panels import Panel
from truing.report.runs import Run, find_runs, read_run, stages_of

FILE = "report.html"
PROMPTS = 6
CHARACTERS = 1500
"""Of a prompt or a completion; a prompt is cut from its start."""
DRAWN = (LOSS, ACCURACY, WINS, WINS_AT_LENGTH, KL, FORGETTING)


def comparison_page(verdict: Verdict) -> str:
    """The page as HTML."""
    names = ", ".join(entry.name for entry in verdict.contest.entries)
    lead = f"From {verdict.contest.beginning.result}, on the same data, measured on the same held-out prompts."
    sections = [
        Section("Result", "result", tuple(_result(verdict))),
        Section("Intervals", "intervals", (page.grid(_intervals(verdict)),)),
        Section("Costs", "costs", tuple(_costs(verdict))),
        Section("Training", "training", tuple(_training(verdict))),
        Section("The same prompts answered", "answers", tuple(_answers(verdict))),
        Section("Data", "data", tuple(_data(verdict))),
        Section("Repeat it", "repeat", tuple(_repeat(verdict))),
    ]
    return page.page(f"Comparison of {names}", lead, [section for section in sections if section.parts])


def _result(verdict: Verdict) -> list[Markup]:
    parts = [page.bullets(verdict.sentences())]
    for title, columns in GROUPS:
        found = _table(verdict, columns)
        parts += [] if found is None else [page.heading(title), found]
    parts += [page.paragraph(line) for line in verdict.how_to_read()]
    parts += [page.note(line) for line in verdict.missing()]
    return parts


def _table(verdict: Verdict, columns: Sequence[tuple[Figure, str]]) -> Markup | None:
    """Some figures of all results; None where none of them was measured."""
    known = [(found, header) for figure, header in columns if (found := verdict.standing(figure.key)) is not None]
    if not known:
        return None
    rows = [[name, *(cell(one, name) for one, _ in known)] for name in verdict.names]
    rows.append(["prompts", *(f"{one.clusters:,}" for one, _ in known)])
    return page.table(["", *(header for _, header in known)], rows, numeric=set(range(1, len(known) + 1)))


def _intervals(verdict: Verdict) -> list[Markup]:
    found = [verdict.standing(figure.key) for figure in DRAWN]
    return [intervals(one, verdict.names) for one in found if one is not None]


def _costs(verdict: Verdict) -> list[Markup]:
    memory = {name: costs.peak_bytes / 1e9 for name, costs in verdict.costs.items()}
    time = {name: costs.seconds for name, costs in verdict.costs.items()}
    figures = [
        bars("Peak memory", "GB", memory, "Of the largest process of each; libraries are in it."),
        bars("Time in steps", "seconds", time, "Mean of the seeds; loading, the reference and samples are not in it."),
    ]
    headers = ["", "tokens", "steps", "passes", "in steps", "off foreseen", "in all", "peak memory", "trained"]
    rows = [[name, *_spent(costs)] for name, costs in verdict.costs.items()]
    if all(costs.time_off is None for costs in verdict.costs.values()):
        headers, rows = headers[:5] + headers[6:], [row[:5] + row[6:] for row in rows]
    budget = verdict.contest.budget
    said = "Each recipe trained as it says." if budget is None else f"Budget of each: {budget}."
    return [page.paragraph(said), page.grid(figures), page.table(headers, rows, numeric=set(range(1, len(headers))))]


def _spent(costs: Costs) -> list[str]:
    return [
        f"{costs.tokens:,.0f}",
        f"{costs.steps:,.0f}",
        "–" if costs.passes is None else f"{costs.passes:.2g}",
        in_time(costs.seconds),
        off(costs),
        in_time(costs.process_seconds),
        in_bytes(costs.peak_bytes),
        "–" if costs.parameters is None else f"{costs.parameters:,} parameters",
    ]


def _training(verdict: Verdict) -> list[Markup]:
    runs = _runs(verdict)
    panel = Panel(
        "Training loss",
        "loss",
        (("loss", "loss"),),
        "Every method has a loss of its own: heights may be compared between seeds, not between methods.",
    )
    curves = of_several(runs, panel) + of_several(runs, Panel("Learning rate", "rate", (("learning_rate", "rate"),)))
    return [page.legend(named(runs, "legend")), page.grid(curves)] if curves else []


def _runs(verdict: Verdict) -> list[Run]:
    """All runs; of a chain its last stage."""
    found = []
    for entry in verdict.contest.entries:
        for seed in verdict.contest.seeds:
            folder = verdict.contest.folder.run(entry.name, seed)
            if find_runs(folder):
                found.append(read_run((stages_of(folder) or [folder])[-1], folder.name))
    return found


def _answers(verdict: Verdict) -> list[Markup]:
    """What every result wrote for the first held-out prompts, under the first seed."""
    exam = verdict.contest.exam
    if exam.prompts is None:
        return []
    asked = [json.loads(line)["prompt"] for line in Path(exam.prompts).read_text(encoding="utf-8").split("\n") if line]
    written = {name: verdict.contest.measured(name)[0].written or () for name in verdict.names}
    rows_asked = list(dict.fromkeys(one.row for one in written[START]))[:PROMPTS]
    judged = exam.reward is not None
    parts = [page.paragraph("Sampled at temperature 1 under the same seeds; the first ones, not the best.")]
    for row in rows_asked:
        first = {name: next((one for one in found if one.row == row), None) for name, found in written.items()}
        rows = [
            [name, page.text(one.text, CHARACTERS), f"{one.tokens:,}", "–" if one.score is None else f"{one.score:.3g}"]
            for name, one in first.items()
            if one is not None
        ]
        headers = ["", "completion", "tokens", "judge"]
        kept = len(headers) if judged else len(headers) - 1
        parts.append(_prompt(asked[row - 1]))
        parts.append(page.table(headers[:kept], [each[:kept] for each in rows], numeric={2, 3}, texts={1}))
    return parts


def _prompt(asked: Any) -> Markup:
    words = asked if isinstance(asked, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in asked)
    shown = words if len(words) <= CHARACTERS else f"… {words[-CHARACTERS:]}"
    return Markup('<pre class="wrap">{}</pre>').format(page.text(shown))


def _data(verdict: Verdict) -> list[Markup]:
    rows = [[entry.name, "; then ".join(entry.trained_on)] for entry in verdict.contest.entries]
    return [page.bullets(verdict.contest.data), page.table(["", "trained on"], rows)]


def _repeat(verdict: Verdict) -> list[Markup]:
    contest = verdict.contest
    parts = [Markup('<pre class="wrap">{}</pre>').format(page.text(contest.request.command()))]
    for entry in contest.entries:
        file = contest.folder.run(entry.name, 0) / "recipe.yaml"
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            parts.append(page.folded(f"Recipe of {entry.name}, seed 0", [page.preformatted(text)]))
    return parts
