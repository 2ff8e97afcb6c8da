"""Work in processes of its own: when it begins, what comes back, and that nothing is left behind when it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from truing.core.errors import DataError, InputError, MachineError, RunError
from truing.evaluate.processes import THREAD_VARIABLES, Call, Done, Task, run_tasks
from truing.training.progress import Reporter, Silent

JOBS = "tests.evaluate.jobs"
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def _own_thread_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run sets in the environment goes with the test."""
    for variable in THREAD_VARIABLES:
        monkeypatch.setenv(variable, "1")


class Recording:
    """A board that keeps what happens, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def started(self, name: str) -> Reporter:
        self.events.append(("started", name))
        return _Heard(self, name)

    def finished(self, name: str, done: Done) -> None:
        self.events.append(("finished", name))


class _Heard(Silent):
    def __init__(self, board: Recording, name: str) -> None:
        self._board, self._name = board, name

    def say(self, text: str) -> None:
        self._board.events.append((self._name, "say", text))

    def warn(self, text: str) -> None:
        self._board.events.append((self._name, "warn", text))

    def show(self, name: str, parts: Any) -> None:
        self._board.events.append((self._name, "show", name, parts))

    def begin(self, what: str, total: int, done: int = 0, before: Any = ()) -> None:
        self._board.events.append((self._name, "begin", what, total, done))

    def advance(self, done: int, figures: Any = None) -> None:
        self._board.events.append((self._name, "advance", done, figures))

    def end(self) -> None:
        self._board.events.append((self._name, "end"))


def task(name: str, job: str, *arguments: Any, needs: tuple[str, ...] = ()) -> Task:
    return Task(name, Call(JOBS, job, arguments), needs)


def run(*tasks: Task, at_once: int = 2, threads: int = 1) -> tuple[dict[str, Done], list[tuple[Any, ...]]]:
    board = Recording()
    return run_tasks(tasks, board, at_once=at_once, threads=threads), board.events


def spans(done: dict[str, Done]) -> list[tuple[float, float]]:
    return sorted(one.value for one in done.values())


def test_tasks_begin_in_their_order_once_what_they_need_is_done() -> None:
    tasks = [
        task("base", "span", 0.3),
        task("above", "span", 0.0, needs=("base",)),
        task("beside", "span", 0.0),
        task("top", "span", 0.0, needs=("base", "above")),
    ]
    done, events = run(*tasks)
    assert [name for kind, name in events if kind == "started"] == ["base", "beside", "above", "top"]
    for later, need in (("above", "base"), ("top", "base"), ("top", "above")):
        assert done[later].value[0] >= done[need].value[1]
        assert events.index(("finished", need)) < events.index(("started", later))
    _, alone = run(*tasks, at_once=1)
    names = ["base", "above", "beside", "top"]
    assert alone == [(kind, name) for name in names for kind in ("started", "finished")]


def test_no_more_run_at_once_than_was_said() -> None:
    alone, _ = run(*(task(f"{number}", "span", 0.05) for number in range(3)), at_once=1)
    assert all(end <= begin for (_, end), (begin, _) in zip(spans(alone), spans(alone)[1:], strict=False))
    done, events = run(*(task(f"{number}", "span", 0.1) for number in range(5)), at_once=2)
    assert all(sum(begin <= moment < end for begin, end in spans(done)) <= 2 for moment, _ in spans(done))
    running = 0
    for kind, _ in events:
        running += 1 if kind == "started" else -1
        assert 0 <= running <= 2


def test_two_at_once_run_side_by_side(tmp_path: Path) -> None:
    """Each ends only after the other has begun."""
    left, right = tmp_path / "left", tmp_path / "right"
    done, _ = run(task("left", "meet", left, right), task("right", "meet", right, left))
    assert done.keys() == {"left", "right"}


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("name", ["at_once", "threads"])
def test_fewer_than_one_is_refused(name: str, number: int) -> None:
    with pytest.raises(InputError, match=f"{name} is {number}; expected 1 or more"):
        run(task("never", "span", 0.0), **{name: number})


def test_no_tasks_give_nothing() -> None:
    assert run() == ({}, [])


def test_what_a_task_tells_reaches_its_own_reporter_in_order_and_what_it_returns_comes_back() -> None:
    done, events = run(task("one", "tell"), task("two", "tell"))
    for name in ("one", "two"):
        assert [event[1:] for event in events if event[0] == name] == [
            ("say", "a word"),
            ("warn", "a warning"),
            ("show", "a row", [("prompt", False), ("completion", True)]),
            ("begin", "steps", 2, 0),
            ("advance", 1, {"loss": 0.5}),
            ("end",),
        ]
    assert len({done["one"].value, done["two"].value, os.getpid()}) == 3, "each in a process of its own"


def test_the_peak_of_memory_is_a_tasks_own() -> None:
    """The small one runs last, and in the same way: a peak that was shared or inherited would be large too."""
    done, _ = run(task("large", "hold", 200), task("small", "hold", 0), at_once=1)
    large, small = done["large"], done["small"]
    assert (large.value, small.value) == (200 * MEGABYTE, 0)
    assert 195 * MEGABYTE < large.peak_bytes - small.peak_bytes < 215 * MEGABYTE
    for one in (large, small):
        # The kernel counts what is resident in steps, so the peak may seem a little under the start.
        assert 50 * MEGABYTE < one.start_bytes < one.peak_bytes + MEGABYTE, "the libraries were there before"
    assert abs(large.start_bytes - small.start_bytes) < 15 * MEGABYTE


def test_seconds_pass_and_cpu_seconds_are_used() -> None:
    done, _ = run(task("idle", "span", 0.3), task("busy", "count", 0.3))
    assert done["idle"].seconds >= 0.3 > 0.1 > done["idle"].cpu_seconds
    assert 0.3 <= done["busy"].cpu_seconds < 0.5
    assert done["busy"].seconds >= 0.3


@pytest.mark.parametrize("threads", [1, 2])
def test_libraries_are_there_before_the_work_and_threads_as_many_as_was_said(threads: int) -> None:
    # In a process of its own: in this one another test may have begun to fork, with other libraries.
    code = (
        "from tests.evaluate.test_processes import run, task\n"
        f"print(run(task('look', 'look'), threads={threads})[0]['look'].value)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout == f"(True, {threads})\n"


def test_our_own_error_keeps_its_kind_and_gets_the_tasks_name() -> None:
    with pytest.raises(DataError, match=r"^arm-3: train.jsonl:3: record has no 'chosen'$") as told:
        run(task("arm-3", "refuse"))
    assert told.value.exit_code == 2


def test_an_unexpected_error_comes_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"^arm-3: it failed unexpectedly:\nTraceback") as told:
        run(task("arm-3", "stumble"))
    assert "in stumble\n" in str(told.value)
    assert "ZeroDivisionError: nobody foresaw this" in str(told.value)


def test_a_result_that_cannot_be_sent_is_an_unexpected_error() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)^arm-3: it failed unexpectedly:.*pickle"):
        run(task("arm-3", "give_code"))


@pytest.mark.parametrize("job", ["vanish", "vanish_while_sending"])
def test_a_process_that_is_killed_is_a_machine_error(job: str) -> None:
    with pytest.raises(MachineError, match=r"^arm-3: its process ended .*\(exit code -9\); .*memory") as told:
        run(task("arm-3", job))
    assert told.value.exit_code == 4


def test_a_failure_ends_the_others_and_begins_no_more(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    board = Recording()
    tasks = [
        task("other", "linger", file),
        task("fails", "refuse_after", file),
        task("above", "tell", needs=("fails",)),
        task("waiting", "tell"),
    ]
    with pytest.raises(DataError, match=r"^fails: "):
        run_tasks(tasks, board, at_once=2, threads=1)
    assert board.events == [("started", "other"), ("started", "fails")]
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text(encoding="ascii")), 0)


def test_tasks_that_cannot_be_put_in_order_are_refused_before_any_begins() -> None:
    first, second = task("first", "tell"), task("second", "tell", needs=("first",))
    cases = [
        ([first, task("third", "tell", needs=("fist",))], "task 'third' needs 'fist', which does not come before it"),
        ([second, first], "task 'second' needs 'first', which does not come before it"),
        ([task("loop", "tell", needs=("loop",))], "task 'loop' needs 'loop', which does not come before it"),
        ([first, second, first], "task 'first' is given twice"),
    ]
    for tasks, message in cases:
        board = Recording()
        with pytest.raises(RunError, match=message):
            run_tasks(tasks, board, at_once=2, threads=1)
        assert not board.events


def test_a_call_imports_its_module_only_where_it_is_called() -> None:
    code = (
        "import pickle, sys\n"
        "from truing.evaluate.processes import Call, Task\n"
        f"task = pickle.loads(pickle.dumps(Task('span', Call('{JOBS}', 'span', (0.0,)))))\n"
        f"print([name for name in ('{JOBS}', 'torch', 'transformers') if name in sys.modules])\n"
        "began, ended = task.work(None)\n"
        f"print(ended >= began, '{JOBS}' in sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert told.stdout.splitlines() == ["[]", "True True"], told.stderr
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        Call("no_such_module", "work", ())(Silent())
