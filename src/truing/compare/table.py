"""The comparison for a terminal: tables of at most 100 columns that a pipe keeps readable."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from truing.compare.folder import START
from truing.compare.standing import (
    ACCURACY,
    ACCURACY_PER_TOKEN,
    FORGETTING,
    KL,
    LENGTH,
    LOSS,
    WINS,
    WINS_AT_LENGTH,
    Figure,
)
from truing.compare.verdict import Verdict, cell, off
from truing.core.text import harmless
from truing.report.details import in_bytes, in_time

WIDTH = 100
NAME = 16
GROUPS: tuple[tuple[str, tuple[tuple[Figure, str], ...]], ...] = (
    (
        "On held-out rows",
        ((LOSS, "loss, nats a token"), (ACCURACY, "prefers chosen %"), (ACCURACY_PER_TOKEN, "chosen, a token %")),
    ),
    ("Against the start", ((WINS, "win-rate %"), (WINS_AT_LENGTH, "at equal length %"), (KL, "KL, nats"))),
    ("Besides", ((FORGETTING, "forgetting, nats a token"), (LENGTH, "tokens written"))),
)
"""Titles of tables, and their columns: few enough for 100 columns of text."""


def show(verdict: Verdict, console: Console | None = None) -> None:
    """Print the tables and what may be said of them."""
    (console or Console(width=WIDTH)).print(rendered(verdict))


def rendered(verdict: Verdict) -> RenderableType:
    """Tables, sentences, and what each was trained on."""
    lines = [*verdict.how_to_read(), "", *verdict.sentences(), *verdict.missing(), "", *_trained_on(verdict)]
    return Group(
        *(_figures(verdict, columns, title) for title, columns in GROUPS),
        _costs(verdict),
        *(Text(harmless(line)) for line in lines),
    )


def _figures(verdict: Verdict, columns: Sequence[tuple[Figure, str]], title: str) -> RenderableType:
    found = [(verdict.standing(figure.key), header) for figure, header in columns]
    known = [(standing, header) for standing, header in found if standing is not None]
    if not known:
        return Text()
    table = _table(title)
    for _, header in known:
        table.add_column(header, justify="right", no_wrap=True)
    for name in verdict.names:
        table.add_row(_short(name), *(cell(standing, name) for standing, _ in known))
    table.add_row(Text("prompts", "dim"), *(f"{standing.clusters:,}" for standing, _ in known), style="dim")
    return table


def _costs(verdict: Verdict) -> Table:
    table = _table("Spent on training, mean of the seeds")
    timed = any(costs.time_off is not None for costs in verdict.costs.values())
    headers = ["tokens", "steps", "passes", "in steps", *(["off"] if timed else []), "in all", "peak memory", "trained"]
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for name, costs in verdict.costs.items():
        table.add_row(
            _short(name),
            f"{costs.tokens:,.0f}",
            f"{costs.steps:,.0f}",
            "–" if costs.passes is None else f"{costs.passes:.2g}",
            in_time(costs.seconds),
            *([off(costs)] if timed else []),
            in_time(costs.process_seconds),
            in_bytes(costs.peak_bytes),
            "–" if costs.parameters is None else f"{costs.parameters:,}",
        )
    return table


def _trained_on(verdict: Verdict) -> list[str]:
    return [f"{entry.name} was trained on {'; then on '.join(entry.trained_on)}" for entry in verdict.contest.entries]


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    return table


def _short(name: str) -> Text:
    return Text(
        harmless(name) if len(name) <= NAME else harmless(name)[: NAME - 1] + "…", "dim" if name == START else ""
    )
