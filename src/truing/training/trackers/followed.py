"""Hands what happens in a run to its trackers, and keeps their troubles away from it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from truing.core.errors import MachineError
from truing.core.text import harmless
from truing.training.progress import Reporter
from truing.training.run_directory import RunDirectory
from truing.training.trackers.tracker import Parameters, TrackedRun, Tracker

STATE_FILE = "trackers.json"

Opener = Callable[[TrackedRun], Tracker]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the run directory remembers of a tracker, so that a resumed run goes on in it."""

    run_id: str | None = None
    logged: int = 0
    """The last step that it is known to have been handed."""
    dropped: bool = False
    """Whether it failed after that step, and was handed none of those that followed."""


@dataclass(slots=True, eq=False)
class _Following:
    """A tracker that still works."""

    name: str
    tracker: Tracker
    logged: int
    shown: int
    """The last step whose samples it was given; -1 before those of the start."""


@dataclass(eq=False)
class Trackers:
    """The trackers of one run; empty where the recipe names none."""

    run: RunDirectory
    reporter: Reporter
    _following: list[_Following] = field(default_factory=list)
    _kept: dict[str, Kept] = field(default_factory=dict)

    def open(self, openers: Mapping[str, Opener], step: int, parameters: Parameters) -> list[str]:
        """Begin, or go on after `step`; return what went wrong, a sentence for each tracker that could not."""
        if not openers:
            return []
        self._kept = _read(self.run)
        made = max((int(row["step"]) for row in self.run.rows("metrics.jsonl")), default=0)
        complaints = []
        for name, opener in openers.items():
            kept = self._kept.get(name, Kept())
            logged = kept.logged if kept.dropped else max(kept.logged, made)
            folder = self.run.path.resolve()
            about = TrackedRun(folder, folder.name, parameters, kept.run_id, step, logged)
            try:
                with _own_random_states():
                    tracker = opener(about)
            except Exception as failure:  # noqa: BLE001  a library of strangers, a disk, a network: anything
                complaints.append(f"{name} cannot begin: {_brief(failure)}")
                self._kept[name] = Kept(kept.run_id, logged, dropped=True)
                continue
            shown = -1 if kept.run_id is None else tracker.logged
            self._following.append(_Following(name, tracker, tracker.logged, shown))
            self._kept[name] = Kept(tracker.run_id, tracker.logged)
        self._write()
        return complaints

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Hand over a row of metrics.jsonl; what is no finite number is left out."""
        figures = {key: float(value) for key, value in row.items() if key != "step" and _is_figure(value)}
        for following in tuple(self._following):
            if step > following.logged:
                self._try(following, lambda tracker: tracker.log(step, figures))
                following.logged = step

    def show(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Hand over rows of samples.jsonl, which follow the figures of the same step."""
        for following in tuple(self._following):
            if samples and step > following.shown:
                self._try(following, lambda tracker: tracker.show(step, samples))
                following.shown = step

    def end(self, *, finished: bool) -> None:
        """Let every tracker go."""
        for following in tuple(self._following):
            self._try(following, lambda tracker: tracker.end(finished=finished))
        self._following = []

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.end(finished=kind is None)

    def _try(self, following: _Following, action: Callable[[Tracker], None]) -> None:
        try:
            with _own_random_states():
                action(following.tracker)
        except Exception as failure:  # noqa: BLE001  training never stops for what only watches it
            self._drop(following, failure)

    def _drop(self, following: _Following, failure: Exception) -> None:
        self._following.remove(following)
        self.reporter.warn(f"{following.name} failed and is followed no more: {_brief(failure)}")
        self._kept[following.name] = Kept(following.tracker.run_id, following.logged, dropped=True)
        self._write()

    def _write(self) -> None:
        try:
            self.run.write_json(STATE_FILE, {name: asdict(kept) for name, kept in self._kept.items()})
        except MachineError as failure:  # the same full disk that the tracker failed of
            self.reporter.warn(str(failure))


def _read(run: RunDirectory) -> dict[str, Kept]:
    if not (run.path / STATE_FILE).is_file():
        return {}
    return {name: Kept(**values) for name, values in run.read_json(STATE_FILE).items()}


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@contextmanager
def _own_random_states() -> Iterator[None]:
    """Whatever a library draws here, the run draws what it would have drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _brief(failure: Exception) -> str:
    lines = harmless(str(failure)).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0][:300]}" if lines else type(failure).__name__
