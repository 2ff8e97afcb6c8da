"""What training cost each entry: tokens, steps, time, memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from truing.compare.contest import Contest
from truing.compare.work import Trained, steps_of


@dataclass(frozen=True, slots=True)
class Run:
    """What one run spent."""

    tokens: int
    """Positions of all training batches; a prompt counts once where completions share it."""
    steps: int
    seconds: float
    """In steps."""
    process: Trained


@dataclass(frozen=True, slots=True)
class Costs:
    """What an entry spent, run by run."""

    runs: tuple[Run, ...]
    parameters: int | None
    """That were trained, of the last stage."""
    rows: int | None
    """That the last stage learned from."""
    passes: float | None
    """Over those rows, on average."""
    foreseen_seconds: float | None

    @property
    def stopped(self) -> str | None:
        """Why a guard ended one of the runs, if one did."""
        return next((run.process.stopped for run in self.runs if run.process.stopped is not None), None)

    @property
    def tokens(self) -> float:
        return fmean(run.tokens for run in self.runs)

    @property
    def steps(self) -> float:
        return fmean(run.steps for run in self.runs)

    @property
    def seconds(self) -> float:
        """In steps."""
        return fmean(run.seconds for run in self.runs)

    @property
    def process_seconds(self) -> float:
        return fmean(run.process.seconds for run in self.runs)

    @property
    def peak_bytes(self) -> int:
        """The largest of the runs: on a GPU where there is one, else resident."""
        return max(run.process.device_bytes or run.process.peak_bytes for run in self.runs)

    @property
    def time_off(self) -> float | None:
        """How far the time in steps was from what was foreseen, as a share of that."""
        return None if self.foreseen_seconds is None else self.seconds / self.foreseen_seconds - 1

    def as_json(self) -> dict[str, Any]:
        return {
            "trained_parameters": self.parameters,
            "rows": self.rows,
            "passes": self.passes,
            "foreseen_seconds": self.foreseen_seconds,
            "time_off": self.time_off,
            "runs": [
                {
                    "tokens": run.tokens,
                    "steps": run.steps,
                    "seconds_in_steps": run.seconds,
                    "process_seconds": run.process.seconds,
                    "peak_bytes": run.process.peak_bytes,
                    "device_bytes": run.process.device_bytes,
                    "resumed": run.process.resumed,
                    "stopped": run.process.stopped,
                }
                for run in self.runs
            ],
        }


def costs_of(contest: Contest, name: str) -> Costs:
    """Read what the runs of an entry left behind."""
    folders = [contest.folder.run(name, seed) for seed in contest.seeds]
    runs = [_run(folder, process) for folder, process in zip(folders, contest.costs(name), strict=True)]
    last = _last_stage(folders[0])
    rows = _read(last / "data.json").get("trees", {}).get("train")
    seen = steps_of(last)[-1].get("rows") if runs[0].steps else None
    course = contest.courses.get(name)
    return Costs(
        tuple(runs),
        _read(last / "plan.json").get("trained_parameters"),
        rows,
        seen / rows if seen and rows else None,
        None if course is None else course.seconds,
    )


def _run(folder: Path, process: Trained) -> Run:
    rows = steps_of(folder)
    return Run(sum(row["tokens"] for row in rows), len(rows), sum(row["seconds"] for row in rows), process)


def _last_stage(folder: Path) -> Path:
    """The folder of a chain's last stage, or the run's own."""
    found = [one for one in folder.glob("*-*") if one.name.split("-")[0].isdigit() and (one / "plan.json").is_file()]
    return max(found, key=lambda one: int(one.name.split("-")[0]), default=folder)


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
