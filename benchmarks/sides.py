"""Run either side of a comparison as a process of its own and bring back the same measurements of both.

This module and its callers import neither torch nor transformers: a child's peak memory, as the kernel reports it, is
never below what its parent held when it was started.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml

HERE = Path(__file__).parent
MAX_LENGTH = 1024  # tokens of a prompt with one answer
WARM_UP = 2  # steps at the beginning of a run that no median counts
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    started_at: float  # seconds since the epoch
    seconds: float
    cpu_seconds: float  # user and system, all threads
    peak_bytes: int  # high-water mark of resident memory
    watched_at: float | None  # seconds since the epoch when the watched file got its first line


@dataclass(frozen=True)
class Run:
    """One engine under one setting: what its steps gave and cost."""

    engine: str
    setting: str
    losses: list[float]
    step_seconds: list[float]
    step_tokens: list[int]
    peak_bytes: int
    seconds: float  # of the whole process
    cpu_seconds: float
    first_step_seconds: float  # from the command to the end of the first step
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.engine} {self.setting}"

    @property
    def seconds_per_step(self) -> float:
        return median(self.step_seconds[WARM_UP:] or self.step_seconds)

    @property
    def tokens_per_second(self) -> float:
        begin = WARM_UP if len(self.step_seconds) > WARM_UP else 0
        return sum(self.step_tokens[begin:]) / sum(self.step_seconds[begin:])


def run_process(command: Sequence[str], log: Path, *, watch: Path | None = None) -> Finished:
    """Run `command` to its end, its output in `log`; stops the benchmark with the log's last lines if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    watched_at: float | None = None
    with log.open("w", encoding="utf-8") as output:
        started_at, began = time.time(), time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        ended = 0
        while not ended:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if watch is not None and watched_at is None and watch.exists() and b"\n" in watch.read_bytes():
                watched_at = time.time()
            if not ended:
                time.sleep(POLL_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise SystemExit(f"exit code {process.returncode} from: {' '.join(command)}\n{tail}")
    return Finished(
        started_at=started_at,
        seconds=time.perf_counter() - began,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
        watched_at=watched_at,
    )


def run_rival(program: str, setting: str, options: Sequence[str], *, python: str, report: Path) -> Run:
    """Run a program of `benchmarks/rivals` with the rival's interpreter."""
    report.parent.mkdir(parents=True, exist_ok=True)
    command = [python, str(HERE / "rivals" / program), *options, "--report", str(report)]
    finished = run_process(command, report.with_suffix(".log"))
    told = json.loads(report.read_text(encoding="utf-8"))
    return Run(
        engine="trl",
        setting=setting,
        losses=told["losses"],
        step_seconds=told["step_seconds"],
        step_tokens=told["step_tokens"],
        peak_bytes=finished.peak_bytes,
        seconds=finished.seconds,
        cpu_seconds=finished.cpu_seconds,
        first_step_seconds=told["first_step_at"] - finished.started_at,
        versions=told["versions"],
    )


def run_truing(setting: str, recipe: Mapping[str, Any], *, command: Sequence[str], folder: Path) -> Run:
    """Run `truing train` on `recipe` in a fresh run directory and read its metrics."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe_file = folder.with_suffix(".yaml")
    recipe_file.write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
    metrics_file = folder / "metrics.jsonl"
    finished = run_process(
        [*command, "train", str(recipe_file), "--output", str(folder)], folder.with_suffix(".log"), watch=metrics_file
    )
    steps = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return Run(
        engine="truing",
        setting=setting,
        losses=[step["loss"] for step in steps],
        step_seconds=[step["seconds"] for step in steps],
        step_tokens=[step["tokens"] for step in steps],
        peak_bytes=finished.peak_bytes,
        seconds=finished.seconds,
        cpu_seconds=finished.cpu_seconds,
        first_step_seconds=(finished.watched_at or finished.started_at + finished.seconds) - finished.started_at,
        versions=environment["versions"],
    )


def truing_recipe(
    *,
    work: Path,
    data: Path,
    full: bool,
    objective: Mapping[str, Any],
    examples: int,
    steps: int,
    learning_rate: float,
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """The recipe that asks of Truing what the rival programs ask of TRL; `changes` are added section by section.

    With `full` all weights are trained, without an adapter.
    """
    recipe: dict[str, Any] = {
        "model": str(work / "model"),
        "template": "tokenizer",
        "adapter": "none" if full else {"use": "lora", "rank": 16, "alpha": 32, "start": str(work / "adapter")},
        "seed": 0,
        "objective": dict(objective),
        "data": {"path": str(data), "max_length": MAX_LENGTH, "shuffle": False},
        "batch": {"examples": examples},
        "optim": {
            "lr": learning_rate,
            "max_steps": steps,
            "schedule": "constant",
            "warmup": 0,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
        },
    }
    for section, values in changes.items():
        recipe[section] = {**recipe.get(section, {}), **values} if isinstance(values, Mapping) else values
    return recipe


NO_SAMPLES = {"samples": {"count": 0}}  # the rival writes none
TRUING_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "fp32": {"precision": {"dtype": "fp32"}, **NO_SAMPLES},
    "bf16": {"precision": {"dtype": "bf16"}, **NO_SAMPLES},
    "bf16, 2048 tokens at a time": {"precision": {"dtype": "bf16"}, "batch": {"micro_tokens": 2048}, **NO_SAMPLES},
    "bf16, 1024 tokens at a time": {"precision": {"dtype": "bf16"}, "batch": {"micro_tokens": 1024}, **NO_SAMPLES},
}
"""Truing's settings that are measured; in all of them the result of a step is the same but for rounding."""


def slug(setting: str) -> str:
    """`setting` as part of a file's name."""
    return "".join(letter if letter.isalnum() else "-" for letter in setting)


def make_model(shape: str, corpus: Sequence[Path], work: Path) -> None:
    """Make model, tokenizer and start adapter where there are none yet."""
    if not (work / "model" / "model.safetensors").exists():
        options = ["--shape", shape, "--corpus", *map(str, corpus), "--output", str(work)]
        run_process([sys.executable, str(HERE / "shapes.py"), *options], work / "shapes.log")


def prepare(kind: str, source: Path, corpus: Sequence[Path], shape: str, work: Path) -> Path:
    """Make model, tokenizer, start adapter and normalised rows; returns the folder of the rows."""
    make_model(shape, corpus, work)
    rows = work / kind
    options = [kind, "--input", str(source), "--model", str(work / "model"), "--limit", str(MAX_LENGTH)]
    options += ["--output", str(rows)]
    run_process([sys.executable, str(HERE / "rows.py"), *options], work / f"{kind}.log")
    print((work / f"{kind}.log").read_text(encoding="utf-8").strip().splitlines()[-1])
    return rows


def first_rows(rows: Path, count: int) -> Path:
    """A copy of the first `count` rows, which is all that either side then reads."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) < count:
        raise SystemExit(f"{rows}: {count} rows needed, {len(lines)} found; ask for fewer steps")
    short = rows.with_name(f"first-{count}.jsonl")
    short.write_text("".join(lines[:count]), encoding="utf-8")
    return short
