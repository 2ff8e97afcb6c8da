"""The laws of trackers, with one that only remembers: what it is handed, once, and that its troubles stay its own."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truing.training.progress import Silent
from truing.training.run_directory import RunDirectory
from truing.training.trackers.followed import Trackers
from truing.training.trackers.tracker import TrackedRun


@dataclass
class Remembering:
    """A tracker that keeps what it gets, and fails at a step where it is told to."""

    fails_at: int | None = None
    rows: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    samples: list[tuple[int, Sequence[Mapping[str, Any]]]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    about: TrackedRun | None = None
    run_id: str = "one"
    logged: int = 0

    def opened(self, about: TrackedRun) -> Remembering:
        self.about, self.logged = about, about.logged
        random.random()
        np.random.rand()
        return self

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        random.random()
        if step == self.fails_at:
            raise ConnectionError("the server\x1b[31m is away")
        self.rows.append((step, figures))

    def show(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        self.samples.append((step, samples))

    def end(self, *, finished: bool) -> None:
        self.ended.append(finished)


class Warned(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def following(folder: Path, tracker: Remembering, step: int = 0) -> tuple[Trackers, Warned]:
    folder.mkdir(exist_ok=True)
    reporter = Warned()
    trackers = Trackers(RunDirectory(folder), reporter)
    assert trackers.open({"fake": tracker.opened}, step, {"optim.lr": 0.1}) == []
    return trackers, reporter


def made(folder: Path, *steps: int) -> None:
    """Say in metrics.jsonl that these steps were made."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))


def test_only_finite_numbers_are_handed_over(tmp_path: Path) -> None:
    tracker = Remembering()
    trackers, _ = following(tmp_path, tracker)
    row = {"step": 1, "loss": 0.5, "rows": 8, "kl": None, "nan": float("nan"), "inf": float("inf"), "yes": True}
    trackers.log(1, row)
    assert tracker.rows == [(1, {"loss": 0.5, "rows": 8.0})]


def test_a_resumed_run_goes_on_in_the_same_tracker_run_and_logs_no_step_twice(tmp_path: Path) -> None:
    first, second = Remembering(), Remembering()
    trackers, _ = following(tmp_path, first)
    for step in (1, 2, 3):
        trackers.log(step, {"loss": float(step)})
    made(tmp_path, 1, 2, 3)
    trackers, _ = following(tmp_path, second, step=2)  # killed after step 3, with a checkpoint of step 2
    for step in (3, 4):
        trackers.log(step, {"loss": float(step)})
    assert second.about is not None
    assert (second.about.run_id, second.about.step, second.about.logged) == ("one", 2, 3)
    assert [step for step, _ in first.rows + second.rows] == [1, 2, 3, 4]


def test_a_run_killed_twice_remembers_the_furthest_step(tmp_path: Path) -> None:
    following(tmp_path, Remembering())
    made(tmp_path, 1, 2, 3, 4)
    following(tmp_path, Remembering(), step=2)
    made(tmp_path, 1, 2, 3)  # the second attempt did not come as far as the first
    last = Remembering()
    following(tmp_path, last, step=2)
    assert last.logged == 4


def test_samples_of_a_step_are_shown_once(tmp_path: Path) -> None:
    first, second = Remembering(), Remembering()
    trackers, _ = following(tmp_path, first)
    trackers.show(0, [{"prompt": "a", "completion": "b"}])
    trackers.log(1, {"loss": 1.0})
    trackers.show(1, [{"prompt": "a", "completion": "c"}])
    made(tmp_path, 1)
    trackers, _ = following(tmp_path, second)
    trackers.show(0, [{"prompt": "a", "completion": "b"}])
    trackers.show(2, [{"prompt": "a", "completion": "d"}])
    assert [step for step, _ in first.samples + second.samples] == [0, 1, 2]


def test_a_tracker_that_fails_is_dropped_with_one_warning(tmp_path: Path) -> None:
    tracker = Remembering(fails_at=2)
    with following(tmp_path, tracker)[0] as trackers:
        reporter = trackers.reporter
        for step in (1, 2, 3):
            trackers.log(step, {"loss": 1.0})
    assert [step for step, _ in tracker.rows] == [1]
    assert tracker.ended == []
    assert isinstance(reporter, Warned)
    assert reporter.warnings == ["fake failed and is followed no more: ConnectionError: the server\\x1b[31m is away"]


def test_a_dropped_tracker_gets_the_steps_that_it_missed_from_a_resumed_run(tmp_path: Path) -> None:
    trackers, _ = following(tmp_path, Remembering(fails_at=2))
    for step in (1, 2, 3):
        trackers.log(step, {"loss": 1.0})
    made(tmp_path, 1, 2, 3)
    second = Remembering()
    trackers, _ = following(tmp_path, second, step=1)
    for step in (2, 3):
        trackers.log(step, {"loss": 1.0})
    assert [step for step, _ in second.rows] == [2, 3]


@pytest.mark.parametrize(("error", "finished"), [(None, True), (RuntimeError, False), (KeyboardInterrupt, False)])
def test_the_end_says_whether_the_run_finished(
    tmp_path: Path, error: type[BaseException] | None, finished: bool
) -> None:
    tracker = Remembering()
    trackers, _ = following(tmp_path, tracker)
    try:
        with trackers:
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert tracker.ended == [finished]


def test_what_a_tracker_draws_does_not_reach_the_run(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.Random(1).random(), np.random.RandomState(1).rand()
    trackers, _ = following(tmp_path, Remembering())
    trackers.log(1, {"loss": 1.0})
    assert (random.random(), np.random.rand()) == expected


def test_a_tracker_that_cannot_begin_is_told_of_and_missed_by_nobody(tmp_path: Path) -> None:
    def refuses(about: TrackedRun) -> Remembering:
        raise OSError("no room")

    trackers = Trackers(RunDirectory(tmp_path), Warned())
    assert trackers.open({"fake": refuses}, 0, {}) == ["fake cannot begin: OSError: no room"]
    trackers.log(1, {"loss": 1.0})
    made(tmp_path, 1)
    later = Remembering()
    trackers, _ = following(tmp_path, later, step=0)
    trackers.log(1, {"loss": 1.0})
    assert [step for step, _ in later.rows] == [1]


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    with Trackers(RunDirectory(tmp_path), Silent()) as trackers:
        trackers.open({}, 0, {})
        trackers.log(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
