"""Shows several runs at once: live bars in a terminal, a line for each beginning and end elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn

from truing.evaluate.processes import Done
from truing.training.progress import Reporter, Silent

Tell = Callable[[str, Done], str]
"""Makes the line about a finished task from its name and what it gave."""

Announce = Callable[[str], str]
"""Says what a task is there for when it begins; empty to say nothing."""

SHOWN = ("loss", "margin", "accuracy", "score", "kl")
"""Figures worth a place beside a bar, where many runs share the width."""


class LineBoard:
    """For logs and pipes."""

    def __init__(self, tell: Tell, announce: Announce) -> None:
        self._tell, self._announce = tell, announce

    def __enter__(self) -> LineBoard:
        return self

    def __exit__(self, *_: object) -> None: ...

    def say(self, text: str) -> None:
        """A sentence of the whole."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def started(self, name: str) -> Reporter:
        if why := self._announce(name):
            self.say(f"  {why}")
        return _Quiet()

    def finished(self, name: str, done: Done) -> None:
        self.say(f"  {self._tell(name, done)}")


class LiveBoard:
    """A bar for every task that runs, and above them a line for each that has ended."""

    def __init__(self, console: Console, tell: Tell, announce: Announce) -> None:
        self._console, self._tell, self._announce = console, tell, announce
        self._progress = Progress(
            TextColumn("  {task.fields[name]:<22}", markup=False),
            BarColumn(bar_width=18),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> LiveBoard:
        self._progress.start()
        return self

    @property
    def tasks(self) -> list[Task]:
        """What runs now."""
        return list(self._progress.tasks)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A sentence of the whole."""
        self._console.print(text, markup=False, highlight=False)

    def started(self, name: str) -> Reporter:
        if why := self._announce(name):
            self.say(f"  {why}")
        bar = self._progress.add_task("starts", total=None, name=name)
        self._bars[name] = bar
        return _Bar(self._progress, bar)

    def finished(self, name: str, done: Done) -> None:
        self._progress.remove_task(self._bars.pop(name))
        self.say(f"  {self._tell(name, done)}")


class _Quiet(Silent):
    """What a single run tells would drown those who watch many; its warnings are in its own report."""


class _Bar(_Quiet):
    def __init__(self, progress: Progress, bar: TaskID) -> None:
        self._progress, self._bar = progress, bar

    def begin(self, what: str, total: int, done: int = 0, before: Sequence[Mapping[str, float]] = ()) -> None:
        self._progress.reset(self._bar, total=total, completed=done, description=what)

    def advance(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        shown = "  ".join(f"{name} {figures[name]:.3g}" for name in SHOWN if name in figures) if figures else None
        self._progress.update(self._bar, completed=done, description=shown)


def board(tell: Tell, announce: Announce = lambda name: "") -> LiveBoard | LineBoard:
    """Live in a terminal, lines elsewhere."""
    console = Console()
    return LiveBoard(console, tell, announce) if console.is_terminal else LineBoard(tell, announce)
