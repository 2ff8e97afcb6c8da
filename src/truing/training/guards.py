"""Watches a run while it trains: judges its rows by the same rules as a report, and says what follows.

Everything is derived from metrics.jsonl and events.jsonl, so a resumed run's guards know what those of the run that was
cut knew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from truing.training.figures import WINDOW, Row, number
from truing.training.guard_settings import Action, GuardSettings
from truing.training.health import complaints
from truing.training.judge_signs import SCORE, START
from truing.training.signs import Complaint, Facts

FILE = "events.jsonl"
PAUSE = 20
"""Steps that a lowered rate is given to help before it is lowered again."""
MOST_LOWERINGS = 3
"""Times that one monitor lowers the rate."""
GROWTH = 50
"""Once it is long, a run is judged each time it has grown by one part in so many, so that a step costs the same."""
NOT_JUDGED = frozenset({"tokens", "num_tokens", "rows", "seconds", "memory_bytes", "learning_rate", "skipped_steps"})
BEST = ((SCORE, 1), ("eval_loss", -1), ("eval_scores", 1))
"""What the best state is told by: the first of these that a run measures, and whether more or less of it is better."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a guard saw and did; a line of events.jsonl."""

    step: int
    """After which it acted; 0: before training."""
    monitor: str
    metric: str
    sentence: str
    action: Action

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(found: Sequence[Complaint], earlier: Sequence[Event], settings: GuardSettings, step: int) -> list[Event]:
    """What follows from complaints: each monitor speaks once, and one that lowers the rate again while it must."""
    events: list[Event] = []
    for complaint in found:
        action = settings.action(complaint.monitor)
        before = [event for event in (*earlier, *events) if event.monitor == complaint.monitor]
        if action == "off" or (before and not (action == "lower" and _again(complaint, before, step))):
            continue
        events.append(Event(step, complaint.monitor, complaint.metric, complaint.sentence, action))
    return events


def _again(complaint: Complaint, before: Sequence[Event], step: int) -> bool:
    return complaint.lasting and len(before) < MOST_LOWERINGS and step - before[-1].step >= PAUSE


def strongest(events: Sequence[Event]) -> Event | None:
    """The event with the strongest action, the first of several."""
    order = get_args(Action)
    return max(events, key=lambda event: order.index(event.action), default=None)


def best_step(rows: Sequence[Row]) -> int | None:
    """The step whose state did best by the first measure that the rows have; 0 is the start, None: nothing measured."""
    for metric, sign in BEST:
        measured = [(0, number(row.get(START + metric))) for row in rows[:1]]
        measured += [(row["step"], number(row.get(metric))) for row in rows]
        finite = [(sign * value, -step) for step, value in measured if value is not None]
        if finite:
            return -max(finite)[1]
    return None


@dataclass(eq=False)
class Guards:
    """The guards of one run."""

    settings: GuardSettings = field(default_factory=GuardSettings)
    facts: Facts = field(default_factory=Facts)
    keeps_best: bool = False
    """Whether the best state may be asked for."""
    _rows: list[Row] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """What the learning rate is multiplied with: it is halved each time a guard lowers it."""
        return float(0.5 ** sum(event.action == "lower" for event in self._events))

    def resume(self, rows: Sequence[Row], events: Sequence[Mapping[str, Any]]) -> None:
        """Know what was known after these rows."""
        self._rows = [_judged(row) for row in rows]
        self._events = [Event(**event) for event in events]

    def before(self, found: Sequence[Complaint]) -> list[Event]:
        """Act on what is known before the first step."""
        return self._noted(found, 0)

    def after(self, row: Row) -> list[Event]:
        """Judge the run with one more row, where it is time to."""
        self._rows.append(_judged(row))
        if not _due(len(self._rows), row):
            return []
        return self._noted(complaints(self._rows, self.facts), int(row["step"]))

    def is_best(self, row: Row) -> bool:
        """Whether the last row is that of the best state so far, and it is worth keeping."""
        measured = any(metric in row for metric, _ in BEST)
        return self.keeps_best and measured and best_step(self._rows) == row["step"]

    def _noted(self, found: Sequence[Complaint], step: int) -> list[Event]:
        events = decide(found, self._events, self.settings, step)
        self._events += events
        return events


def _judged(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in NOT_JUDGED}


def _due(rows: int, row: Row) -> bool:
    """Whether to judge now: every few rows, after each evaluation, and where something is not finite."""
    measured = any(name.startswith(("eval_", "judge/")) for name in row)
    return measured or rows % max(WINDOW, rows // GROWTH) == 0 or row["loss"] is None or row["grad_norm"] is None
