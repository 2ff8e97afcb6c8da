from __future__ import annotations

import io

import pytest
from rich.console import Console

from truing.evaluate.board import LineBoard, LiveBoard
from truing.evaluate.processes import Done

DONE = Done(None, 2.0, 1.0, 3, 1)


def tell(name: str, done: Done) -> str:
    return f"{name} took {done.seconds:.0f} s"


def announce(name: str) -> str:
    return "" if name == "silent" else f"{name} begins"


def test_a_pipe_gets_a_line_for_each_beginning_and_end_and_nothing_of_what_runs_tell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with LineBoard(tell, announce) as shown:
        for name in ("first", "silent"):
            reporter = shown.started(name)
            reporter.say("step 1 of 1000")
            reporter.warn("careful")
            reporter.begin("dpo", 10)
            reporter.advance(3, {"loss": 0.5})
            reporter.end()
            shown.finished(name, DONE)
    assert capsys.readouterr().out.splitlines() == ["  first begins", "  first took 2 s", "  silent took 2 s"]


def test_a_terminal_shows_a_bar_for_each_run_until_it_ends() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with LiveBoard(console, tell, announce) as shown:
        first, second = shown.started("first"), shown.started("second")
        first.begin("dpo", 10)
        first.advance(5, {"loss": 0.25, "tok/s": 1e5})
        second.begin("kto", 4)
        assert [task.fields["name"] for task in shown.tasks] == ["first", "second"]
        assert [(task.completed, task.total) for task in shown.tasks] == [(5, 10), (0, 4)]
        assert "loss 0.25" in shown.tasks[0].description
        assert "tok/s" not in shown.tasks[0].description
        shown.finished("first", DONE)
        assert [task.fields["name"] for task in shown.tasks] == ["second"]
    text = screen.getvalue()
    assert "first took 2 s" in text
    assert "second begins" in text
