"""Truing on a GPU beside TRL, in under eight minutes, with random weights and rows made on the spot.

python benchmarks/gpu                       # needs a CUDA device
python benchmarks/gpu --tiny                # the same programs on a CPU, with a tiny model

LoRA of rank 16 in bfloat16: DPO and SFT of three shapes, PPO with four roles over one 7B base, the vocabulary's loss
alone. Rows run in the order of their worth, each in processes of its own; what no longer fits into --minutes is left
out and named. TRL runs where --rival-python has it, and once more with Liger's kernels where it has those too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from runs import FULL, TINY, Bench, Measured, Skipped

from truing.planner.catalog import catalog

METHODS = ("dpo", "sft")

LIKELY = {"loss head": 20, "qwen2.5-0.5b": 25, "llama-3.2-1b": 30, "llama-7b": 50, "tiny": 5}
"""Seconds below which a row is not begun: it would not end in time."""


def peak_rate(device: str) -> float | None:
    """Operations a second of dense bf16 products that the card's maker names, None for an unknown card."""
    name = device.lower().replace(" ", "-")
    found = (card.teraflops for word, card in catalog().cards.items() if word.split("-")[0] in name.split("-"))
    return next((1e12 * teraflops for teraflops in found), None)


HAS_CUDA = "import sys, torch; sys.exit(not torch.cuda.is_available())"

PATIENCE = 120
"""Seconds after which a row is given up, so that the others have their turn."""


class Clock:
    """What is left of the minutes."""

    def __init__(self, minutes: float) -> None:
        self._end = time.perf_counter() + 60 * minutes

    def left(self, what: str) -> float:
        """Seconds left for a row; Skipped where they are too few."""
        seconds = self._end - time.perf_counter()
        if seconds < LIKELY[what]:
            raise Skipped(f"no time: {max(seconds, 0):.0f} s were left, it takes about {LIKELY[what]}")
        return min(seconds, PATIENCE)


class Results:
    """What is found, written anew after every row, so that a run which is cut has told what it knew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.device = "unknown"
        self.head: dict[str, dict[str, float]] = {}
        self.rows: list[Measured] = []
        self.skipped: dict[str, str] = {}

    def attempt(self, name: str, row: Callable[[], None]) -> bool:
        """Run a row; returns whether it ended well."""
        began = time.perf_counter()
        try:
            row()
        except Skipped as reason:
            self.skipped[name] = str(reason)
        told = self.skipped.get(name, "done")
        print(f"{time.perf_counter() - began:6.1f} s  {name}: {told}", flush=True)
        self.write()
        return name not in self.skipped

    def write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "device": self.device,
            "python": platform.python_version(),
            "head": self.head,
            "rows": [asdict(row) for row in self.rows],
            "skipped": self.skipped,
        }
        (self._folder / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (self._folder / "gpu.md").write_text(self.text() + "\n", encoding="utf-8")

    def text(self) -> str:
        rate = peak_rate(self.device)
        parts = [f"# On a GPU\n\n{self.device}. bfloat16, LoRA of rank 16, no checkpointing, random weights."]
        if self.rows:
            parts += ["## Steps", _step_table(self.rows, rate)]
        if any(row.losses for row in self.rows):
            parts += ["## Losses, step by step", _loss_table(self.rows)]
        if self.head:
            parts += ["## The vocabulary's loss alone", _head_table(self.head)]
        if self.skipped:
            parts += ["## Left out", "\n".join(f"- {name}: {reason}" for name, reason in self.skipped.items())]
        return "\n\n".join(parts)


def _step_table(rows: Sequence[Measured], rate: float | None) -> str:
    """Tokens a second are those of the rows as an engine without sharing reads them, so that they compare."""
    lines = [
        "| | seconds per step | row tokens per second | share of the peak rate | peak memory | planned |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = "" if rate is None else f"{row.operations / row.step / rate:.0%}"
        planned = "" if row.planned_bytes is None else f"{row.planned_bytes / 1e9:.2f} GB"
        lines.append(
            f"| {row.method}, {row.shape}, {row.engine} | {row.step:.3f} | {row.read_tokens / row.step:,.0f} | "
            f"{share} | {row.peak_bytes / 1e9:.2f} GB | {planned} |"
        )
    return "\n".join(lines)


def _loss_table(rows: Sequence[Measured]) -> str:
    return "\n".join(
        [
            "| | losses |",
            "|---|---|",
            *(
                f"| {row.method}, {row.shape}, {row.engine} | {' '.join(f'{loss:.4f}' for loss in row.losses)} |"
                for row in rows
            ),
        ]
    )


def _head_table(head: dict[str, dict[str, float]]) -> str:
    lines = ["| | milliseconds | peak memory | loss | gradient norm |", "|---|---|---|---|---|"]
    for name, found in head.items():
        lines.append(
            f"| {name} | {found['seconds'] * 1e3:.1f} | {found['peak_bytes'] / 1e9:.2f} GB | {found['loss']:.6g} | "
            f"{found['gradient_norm']:.6g} |"
        )
    return "\n".join(lines)


def run(bench: Bench, results: Results, clock: Clock, only: str) -> None:
    """Run the rows that are asked for, as long as there is time."""
    rivals = [False, True] if bench.has_rival("liger_kernel") else [False]
    if not bench.has_rival("trl"):
        rivals = []
        results.skipped["trl"] = "not installed; --rival-python names an interpreter that has it"

    def head() -> None:
        results.head = bench.loss_head(clock.left("loss head"))

    def prepare(shape: str) -> None:
        results.device = bench.prepare(shape, clock.left(shape))

    def measure(shape: str, row: Callable[[float], Measured]) -> None:
        results.rows.append(row(clock.left(shape)))

    if only in "loss head":
        results.attempt("loss head", head)
    for shape in bench.scale.shapes:
        rows = {f"{method}, {shape}, truing": partial(bench.train, method, shape) for method in METHODS}
        if shape == bench.scale.ppo:
            rows[f"ppo, {shape}, truing"] = partial(bench.ppo, shape)
        for liger in rivals:
            name = "trl + liger" if liger else "trl"
            rows |= {f"{method}, {shape}, {name}": partial(bench.rival, method, shape, liger) for method in METHODS}
        wanted = {name: row for name, row in rows.items() if only in name}
        if wanted and results.attempt(f"materials, {shape}", partial(prepare, shape)):
            for name, row in wanted.items():
                results.attempt(name, partial(measure, shape, row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: shows that the programs work")
    parser.add_argument("--minutes", type=float, default=7.5, help="no row goes on after so many")
    parser.add_argument("--rival-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--truing", default=f"{sys.executable} -m truing", help="command line of Truing")
    parser.add_argument("--only", default="", help="run rows whose name has this in it")
    parser.add_argument("--work", type=Path, help="folder for models and runs; a temporary one otherwise")
    parser.add_argument(
        "--output", type=Path, help="folder for gpu.json and gpu.md; $OUT or results/gpu otherwise, none if tiny"
    )
    chosen = parser.parse_args()
    if not chosen.tiny and subprocess.run([sys.executable, "-c", HAS_CUDA], capture_output=True).returncode:
        raise SystemExit("torch sees no CUDA device here; --tiny runs the same programs on a CPU")
    with tempfile.TemporaryDirectory() as temporary:
        unasked = Path(temporary) / "results" if chosen.tiny else Path(__file__).parents[1] / "results" / "gpu"
        results = Results(chosen.output or Path(os.environ.get("OUT", unasked)))
        scale = TINY if chosen.tiny else FULL
        bench = Bench(scale, chosen.work or Path(temporary), shlex.split(chosen.truing), chosen.rival_python)
        run(bench, results, Clock(chosen.minutes), chosen.only)
    print("\n" + results.text())


if __name__ == "__main__":
    main()
