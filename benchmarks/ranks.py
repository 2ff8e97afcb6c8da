"""Seconds a step on 1, 2 and 4 processes of one machine, with copies of the weights and with one that is cut over them.

python benchmarks/ranks.py [--shapes 1m 25m] [--processes 1 2 4]

SFT with full weights on rows of made-up words, the same step everywhere. Each process has one thread, so that what is
shown is the sharing alone; more processes than cores can gain nothing. The first steps are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

import comparison
from shapes import SHAPES, write_model, write_tokenizer

ROWS, WORDS, EXAMPLES = 128, 160, 16
STEPS, LEFT_OUT = 8, 3


@dataclass(frozen=True)
class Row:
    """What was measured of one way to share a step."""

    shape: str
    processes: int
    shard: str
    seconds: float
    """A step."""


def write_rows(file: Path) -> None:
    """Rows of words that are none."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeiounrstlmd"), rng.integers(2, 8))) for _ in range(2000)]
    rows = [{"text": " ".join(rng.choice(words, WORDS))} for _ in range(ROWS)]
    file.write_text(json.dumps(rows), encoding="utf-8")


def seconds_a_step(folder: Path, processes: int, shard: int | str) -> float:
    """The median over the steps that count."""
    recipe = {
        "model": str(folder / "model"),
        "adapter": "none",
        "objective": {"use": "sft"},
        "data": {"path": str(folder / "rows.json"), "max_length": 512},
        "optim": {"lr": 1e-5, "max_steps": STEPS},
        "batch": {"examples": EXAMPLES, "micro_tokens": 1024},
        "samples": {"count": 0},
        "precision": {"matmul": "highest", "dtype": "fp32"},
        "parallel": {"shard": shard},
    }
    file, output = folder / "recipe.yaml", folder / f"{processes}-{shard}"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "truing", "train", str(file), "--output", str(output), "--nproc", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median(row["seconds"] for row in rows[LEFT_OUT:])


def measured(shape: str, processes: list[int]) -> list[Row]:
    """A row for each way to share."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.json")
        write_tokenizer(folder / "model", [folder / "rows.json"])
        write_model(folder / "model", SHAPES[shape], seed=0)
        ways = [(1, 1), *((world, shard) for world in processes if world > 1 for shard in (1, "all"))]
        return [Row(shape, world, str(shard), seconds_a_step(folder, world, shard)) for world, shard in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["1m", "25m"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    options = parser.parse_args()
    rows = [row for shape in options.shapes for row in measured(shape, options.processes)]
    alone = {row.shape: row.seconds for row in rows if row.processes == 1}
    table = ["| shape | processes | shard | seconds a step | times as fast as one |", "|---|---|---|---|---|"]
    for row in rows:
        gain = alone[row.shape] / row.seconds
        table.append(f"| {row.shape} | {row.processes} | {row.shard} | {row.seconds:.3f} | {gain:.2f} |")
    said = f"SFT, full weights, float32, {EXAMPLES} rows of {WORDS} words a step, one thread a process."
    comparison.write_table(
        "ranks", "Steps of several processes", [said, "\n".join(table)], [asdict(row) for row in rows]
    )


if __name__ == "__main__":
    main()
