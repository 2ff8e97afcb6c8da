"""`truing runs`: every run below some folders, for a person or for a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from truing.core.errors import TruingError
from truing.core.text import harmless
from truing.report.details import figure, in_bytes, in_time
from truing.report.panels import quality_of
from truing.report.runs import Run, find_runs, read_run
from truing.report.verdict import NAMES, short
from truing.training.health import complaints


@dataclass(frozen=True, slots=True)
class Listed:
    """A run in one row."""

    path: str
    name: str
    method: str
    model: str
    """The start model or adapter, short."""
    adapter: str
    state: str
    """finished, running or stopped."""
    steps: int
    planned_steps: int | None
    loss: float | None
    """Of the last step."""
    metric: str | None
    """The figure by which it is judged first, such as `eval_rewards/accuracies`."""
    value: float | None
    """The last one of it."""
    complaints: int
    """Figures outside of their healthy range."""
    peak_memory_bytes: float | None
    seconds: float
    """Spent in steps."""
    changed: str
    """When its figures were last written, in local time (ISO 8601)."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def list_runs(folders: Sequence[Path]) -> list[Listed]:
    """All runs at or below the folders, the one changed last at the end. Raises RunError where there is none."""
    paths = {path.resolve(): (path, _named(path, folder)) for folder in folders for path in find_runs(folder)}
    found = [run for path, name in paths.values() if (run := _readable(path, name)) is not None]
    return [_listed(run) for run in sorted(found, key=lambda run: (run.changed, run.name))]


TO_THE_RIGHT = ("loss", "quality", "complaints", "memory", "time")
LEFT_OUT_FIRST = ("memory", "adapter", "when", "complaints", "from", "time")
"""Columns that a narrow terminal does without."""


def table(listed: Sequence[Listed], width: int) -> Table:
    """The rows for a terminal, with as many of the columns as fit into its width."""
    columns = {name: [harmless(cell) for cell in cells] for name, cells in _columns(listed).items()}
    for name in LEFT_OUT_FIRST:
        if sum(2 + max(map(len, [name, *cells])) for name, cells in columns.items()) - 2 > width:
            del columns[name]
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in TO_THE_RIGHT else "left", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        made.add_row(*map(Text, row))
    return made


def _columns(listed: Sequence[Listed]) -> dict[str, list[str]]:
    return {
        "run": [run.name for run in listed],
        "method": [run.method for run in listed],
        "from": [run.model for run in listed],
        "adapter": [run.adapter for run in listed],
        "state": [_state(run) for run in listed],
        "loss": [figure(run.loss) for run in listed],
        "quality": [_quality(run) for run in listed],
        "complaints": [str(run.complaints or "–") for run in listed],
        "memory": ["–" if run.peak_memory_bytes is None else in_bytes(run.peak_memory_bytes) for run in listed],
        "time": [in_time(run.seconds) for run in listed],
        "when": [run.changed[:16].replace("T", " ") for run in listed],
    }


def _quality(run: Listed) -> str:
    """Such as `held-out accuracy 0.61`."""
    return "–" if run.metric is None or run.metric == "loss" else f"{NAMES[run.metric].lower()} {figure(run.value)}"


def _state(run: Listed) -> str:
    if run.state == "finished" and run.steps == (run.planned_steps or run.steps):
        return f"finished ({run.steps})"
    return f"{run.state} ({run.steps}{'' if run.planned_steps is None else f' of {run.planned_steps}'})"


def _named(path: Path, folder: Path) -> str:
    """The path below the folder, or its own name where it is the folder."""
    return str(path.relative_to(folder)) if path != folder else path.resolve().name


def _readable(path: Path, name: str) -> Run | None:
    """The run, or None where its folder went away meanwhile."""
    try:
        return read_run(path, name)
    except TruingError:
        return None


def _listed(run: Run) -> Listed:
    metric = quality_of(run.metrics) if run.rows else None
    return Listed(
        path=str(run.path),
        name=run.name,
        method=run.method,
        model=short(run.model),
        adapter=run.adapter,
        state=run.state,
        steps=run.steps,
        planned_steps=run.planned_steps,
        loss=run.last("loss"),
        metric=metric,
        value=None if metric is None else run.last(metric),
        complaints=len(complaints(run.rows, run.facts)),
        peak_memory_bytes=run.peak_memory_bytes,
        seconds=round(run.seconds, 3),
        changed=datetime.fromtimestamp(run.changed).astimezone().isoformat(timespec="seconds"),
    )
