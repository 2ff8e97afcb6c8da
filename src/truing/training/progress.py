"""What a person sees while a run goes on: a bar in a terminal, a few lines elsewhere."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from truing.core.text import harmless
from truing.training.curves import Curves, number
from truing.training.sparkline import ASCII, BLOCKS

if TYPE_CHECKING:
    from truing.training.ranks import Ranks


class Reporter(Protocol):
    """Receives what happens. Whatever is shown in a terminal is made harmless for it here, wherever it came from."""

    def say(self, text: str) -> None:
        """A sentence worth reading."""
        ...

    def warn(self, text: str) -> None:
        """A sentence that asks for attention."""
        ...

    def show(self, name: str, parts: Sequence[tuple[str, bool]]) -> None:
        """A piece of a training row, as (text, whether it is trained on)."""
        ...

    def begin(self, what: str, total: int, done: int = 0, before: Sequence[Mapping[str, float]] = ()) -> None:
        """A countable piece of work starts; `before` are the figures of what is done of it already."""
        ...

    def advance(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """So much of it is done; `figures` are shown beside it."""
        ...

    def end(self) -> None:
        """The piece of work is over."""
        ...


class Silent:
    """Says nothing, for use as a library."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def show(self, name: str, parts: Sequence[tuple[str, bool]]) -> None: ...

    def begin(self, what: str, total: int, done: int = 0, before: Sequence[Mapping[str, float]] = ()) -> None: ...

    def advance(self, done: int, figures: Mapping[str, float] | None = None) -> None: ...

    def end(self) -> None: ...


class Lines:
    """For logs and pipes: sentences, and about ten lines for each piece of work."""

    def __init__(self) -> None:
        self._what = ""
        self._total = self._next = 0
        self._started = 0.0

    def say(self, text: str) -> None:
        sys.stdout.write(harmless(text) + "\n")
        sys.stdout.flush()

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def show(self, name: str, parts: Sequence[tuple[str, bool]]) -> None:
        marked = "".join(f"⟦{text}⟧" if trained else text for text, trained in parts)
        self.say(f"    {name:<10} {marked!r}")

    def begin(self, what: str, total: int, done: int = 0, before: Sequence[Mapping[str, float]] = ()) -> None:
        self._what, self._total, self._started = what, total, time.monotonic()
        self._next = done + max(1, total // 10)

    def advance(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        if figures is None or (done < self._next and done != self._total):
            return
        self._next = done + max(1, self._total // 10)
        self.say(f"{self._what} {done}/{self._total}  {_figures(figures)}")

    def end(self) -> None: ...


class Terminal:
    """A live bar with the time left and the figures of the last step, and below it the course of the run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._curves = Curves()
        self._progress: Progress | None = None
        self._task: Task | None = None

    def say(self, text: str) -> None:
        self._console.print(harmless(text), markup=False, highlight=False)

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {harmless(text)}", style="yellow", markup=False, highlight=False)

    def show(self, name: str, parts: Sequence[tuple[str, bool]]) -> None:
        line = Text(f"    {name:<10} ", style="dim")
        for text, trained in parts:
            line.append(repr(text)[1:-1], style="green" if trained else "dim")
        self._console.print(line)

    def begin(self, what: str, total: int, done: int = 0, before: Sequence[Mapping[str, float]] = ()) -> None:
        self._curves = Curves(BLOCKS if _can_show(self._console, BLOCKS) else ASCII)
        for figures in before:
            self._curves.add(figures)
        self._progress = _Live(self._curves, self._console)
        task_id = self._progress.add_task(what, total=total, completed=done, figures={})
        self._task = self._progress.tasks[task_id]
        self._progress.start()

    def advance(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task.id, completed=done)
            if figures is not None:
                self._curves.add(figures)
                self._progress.update(self._task.id, figures=figures)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            if self._task is not None and self._task.fields["figures"]:
                self.say(
                    f"{self._task.description:<9} {self._task.completed}/{self._task.total}  "
                    + _figures(self._task.fields["figures"])
                )
            self._progress = None


class _Live(Progress):
    """A bar, and below it the figures and the curves; each stays one line high in a narrow terminal."""

    def __init__(self, curves: Curves, console: Console) -> None:
        self._curves = curves
        super().__init__(
            TextColumn("{task.description:<9}", markup=False),
            BarColumn(bar_width=24, table_column=Column(no_wrap=True)),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        figures = [_figures(task.fields["figures"]) for task in self.tasks if task.fields["figures"]]
        for line in (*figures, *self._curves.lines):
            yield Text(line, style="cyan", no_wrap=True, overflow="ellipsis")


def _can_show(console: Console, text: str) -> bool:
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _figures(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in figures.items())


def reporter() -> Reporter:
    """A bar where a person watches, lines where output goes to a file."""
    console = Console()
    return Terminal(console) if console.is_terminal and os.environ.get("TERM") != "dumb" else Lines()


def reporter_of(ranks: Ranks) -> Reporter:
    """That of the first rank; the others say nothing."""
    return reporter() if ranks.first else Silent()


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int | None:
    """The resident size of this process now, in bytes; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * resource.getpagesize()
