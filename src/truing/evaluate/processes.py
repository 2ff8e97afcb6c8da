"""Runs pieces of work side by side, each in a process of its own, so that its peak of memory is its own.

Processes are forked from one that has imported the libraries and done nothing else: they start in milliseconds, and no
thread pool is torn in two. Work has to be picklable: a `Call`, or a function of a module.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from truing.core.errors import InputError, MachineError, RunError, TruingError
from truing.training.progress import Reporter, peak_memory_bytes

PRELOADED = "truing.evaluate.preload"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Call:
    """A function of a module that is imported only where it is called, so that who plans work needs no libraries."""

    module: str
    name: str
    arguments: tuple[Any, ...]

    def __call__(self, reporter: Reporter) -> Any:
        function = getattr(importlib.import_module(self.module), self.name)
        return function(*self.arguments, reporter)


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work that begins when the tasks it needs are done."""

    name: str
    work: Callable[[Reporter], Any]
    """Called in the new process; what it returns is sent back."""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """What a task returned, and what it cost."""

    value: Any
    seconds: float
    """Of its process, from before the work began to its end, imports not included."""
    cpu_seconds: float
    peak_bytes: int
    """Largest resident memory of its process."""
    start_bytes: int
    """Resident memory before the work began: libraries."""


class Board(Protocol):
    """Shows several pieces of work at once."""

    def started(self, name: str) -> Reporter:
        """A task begins; what it tells goes to the reporter that is returned."""
        ...

    def finished(self, name: str, done: Done) -> None:
        """A task has ended well."""
        ...


def run_tasks(tasks: Sequence[Task], board: Board, *, at_once: int, threads: int) -> dict[str, Done]:
    """Run all tasks, up to `at_once` side by side with so many threads each; return what each gave, by name.

    Tasks are begun in their order as soon as what they need is done. The first failure ends the others and is raised:
    our own errors as they are with the task's name before them, anything else as a RuntimeError with its traceback.
    """
    for name, number in (("at_once", at_once), ("threads", threads)):
        if number < 1:
            raise InputError(f"{name} is {number}; expected 1 or more")
    _check(tasks)
    waiting, running, done = list(tasks), dict[Any, _Running](), dict[str, Done]()
    context = _context()
    try:
        while waiting or running:
            ready = [task for task in waiting if all(need in done for need in task.needs)]
            for task in ready[: at_once - len(running)]:
                waiting.remove(task)
                begun = _Running.begin(task, board.started(task.name), context, threads)
                running[begun.receiver] = begun
            for receiver in connection.wait(list(running)):
                found = running[receiver].receive()
                if found is not None:
                    ended = running.pop(receiver)
                    done[ended.task.name] = found
                    board.finished(ended.task.name, found)
    finally:
        for left in running.values():
            left.stop()
    return done


def _check(tasks: Sequence[Task]) -> None:
    known: set[str] = set()
    for task in tasks:
        missing = [need for need in task.needs if need not in known]
        if missing or task.name in known:
            what = f"needs '{missing[0]}', which does not come before it" if missing else "is given twice"
            raise RunError(f"task '{task.name}' {what}")
        known.add(task.name)


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


@dataclass(slots=True, eq=False)
class _Running:
    task: Task
    reporter: Reporter
    process: BaseProcess
    receiver: connection.Connection
    calls: dict[str, Callable[..., None]] = field(default_factory=dict)

    @classmethod
    def begin(cls, task: Task, reporter: Reporter, context: Any, threads: int) -> _Running:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(task.work, sender, threads), name=task.name, daemon=False)
        process.start()
        sender.close()
        return cls(task, reporter, process, receiver)

    def receive(self) -> Done | None:
        """Take one message; return the result when it is the last one."""
        try:
            kind, content = self.receiver.recv()
        except (EOFError, OSError):  # it ended between two messages, or within one
            self.process.join()
            raise MachineError(
                f"{self.task.name}: its process ended without a word (exit code {self.process.exitcode}); "
                "was it killed for want of memory?"
            ) from None
        if kind == "told":
            name, arguments = content
            getattr(self.reporter, name)(*arguments)
            return None
        self.process.join()
        self.receiver.close()
        if kind == "failed":
            error, text = content
            raise error(f"{self.task.name}: {text}")
        assert isinstance(content, Done)
        return content

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


class _Told:
    """A reporter whose words are sent to the parent process."""

    def __init__(self, sender: connection.Connection) -> None:
        self._sender = sender

    def _tell(self, name: str, *arguments: Any) -> None:
        self._sender.send(("told", (name, arguments)))

    def say(self, text: str) -> None:
        self._tell("say", text)

    def warn(self, text: str) -> None:
        self._tell("warn", text)

    def show(self, name: str, parts: Sequence[tuple[str, bool]]) -> None:
        self._tell("show", name, list(parts))

    def begin(self, what: str, total: int, done: int = 0, before: Sequence[Mapping[str, float]] = ()) -> None:
        self._tell("begin", what, total, done)

    def advance(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        self._tell("advance", done, None if figures is None else dict(figures))

    def end(self) -> None:
        self._tell("end")


def _work(work: Callable[[Reporter], Any], sender: connection.Connection, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    for variable in THREAD_VARIABLES:  # for the processes that it may start itself
        os.environ[variable] = str(threads)
    start = _resident_bytes()
    began, began_cpu = time.perf_counter(), _cpu_seconds()
    try:
        value = work(_Told(sender))
        costs = (time.perf_counter() - began, _cpu_seconds() - began_cpu, peak_memory_bytes(), start)
        sender.send(("done", Done(value, *costs)))
    except TruingError as wrong:
        sender.send(("failed", (type(wrong), str(wrong))))
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException:  # noqa: BLE001 - told to the parent, which stops
        sender.send(("failed", (RuntimeError, f"it failed unexpectedly:\n{traceback.format_exc()}")))
    finally:
        sender.close()


def _cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _resident_bytes() -> int:
    """Resident memory of this process now, where the system tells it; the peak so far elsewhere."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a path would be no clearer
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory_bytes()
