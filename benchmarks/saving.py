"""What saving costs a run, and how long a resumed run takes to its first step.

python benchmarks/shapes.py --shape 25m --corpus pairs.json demonstrations.json --output work/25m
python benchmarks/saving.py steps --model work/25m/model --pairs pairs.json
python benchmarks/saving.py resume --model work/25m/model --pairs pairs.json

`steps` trains DPO with LoRA and SFT with full weights, and sets the time of a save against that of `--every` steps:
at most 3 % is asked for. `resume` stops a run and times `truing resume` as a process, up to the first row that it
writes: at most 8 s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "LoRA rank 16, DPO": {"adapter": {"use": "lora", "rank": 16}, "objective": {"use": "dpo"}},
    "full weights, SFT": {"adapter": "none", "objective": {"use": "sft"}},
}


def recipe(case: str, model: Path, pairs: Path, steps: int, every: int) -> dict[str, Any]:
    """A run of so many steps of 8 rows."""
    return {
        "model": str(model),
        "template": "plain",
        "data": {"path": str(pairs), "max_length": 256, "limit": 512},
        "batch": {"examples": 8},
        "optim": {"max_steps": steps},
        "checkpoint": {"every": every},
        "samples": {"count": 0},
        **CASES[case],
    }


def of_steps(model: Path, pairs: Path, steps: int, every: int) -> None:
    """Train each case, saving after every other step, and print what a save and a step take."""
    from truing.build.chain import run
    from truing.recipe.load import recipe_from
    from truing.training import checkpoint
    from truing.training.progress import Silent

    print(f"| case | state | step | save | CPU of a save | share at one save per {every} steps |")
    print("|---|---|---|---|---|---|")
    real = checkpoint.save
    for case in CASES:
        saves: list[tuple[float, float, int]] = []

        def timed(folder: Path, state: Any, settings: Any, seen: list[Any] = saves) -> Path:
            wall, cpu = time.perf_counter(), time.process_time()
            written = real(folder, state, settings)
            seen.append((time.perf_counter() - wall, time.process_time() - cpu, state.size))
            return written

        checkpoint.save = timed
        with tempfile.TemporaryDirectory(dir=".", prefix=".saving-") as folder:
            output = Path(folder) / "run"
            run(recipe_from(recipe(case, model, pairs, steps, 2)), output, Silent())
            rows = [
                json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").split("\n") if line
            ]
        checkpoint.save = real
        step = statistics.median(row["seconds"] for row in rows[1:])
        save, cpu = (statistics.median(each[n] for each in saves) for n in (0, 1))
        share = save / (every * step + save)
        size = saves[-1][2] / 1e6
        print(f"| {case} | {size:.0f} MB | {step:.2f} s | {save:.2f} s | {cpu:.2f} s | {share:.2%} |", flush=True)


def of_resuming(model: Path, pairs: Path) -> None:
    """Stop a run in its middle and time what `truing resume` needs to its next row."""
    import yaml

    truing = [sys.executable, "-m", "truing"]
    with tempfile.TemporaryDirectory(prefix="truing-resume-") as folder:
        file, output = Path(folder) / "recipe.yaml", Path(folder) / "run"
        file.write_text(yaml.safe_dump(recipe("LoRA rank 16, DPO", model, pairs, 200, 2)), encoding="utf-8")
        _until([*truing, "train", str(file), "--output", str(output)], output, 5)
        before = len(_rows(output))
        wall, cpu = _until([*truing, "resume", str(output)], output, before + 1)
    print(f"resume to its first step: {wall:.1f} s; {cpu:.1f} s of user and system time")


def _until(command: list[str], output: Path, rows: int) -> tuple[float, float]:
    """Let a process run until its run has so many rows, and stop it; its seconds until then, and those of its CPU."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(_rows(output)) < rows:
        time.sleep(0.02)
    wall = time.perf_counter() - began
    cpu = _cpu_of(process.pid) if process.poll() is None else resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    process.terminate()
    process.wait()
    return wall, cpu


def _cpu_of(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rows(output: Path) -> list[str]:
    file = output / "metrics.jsonl"
    return file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "resume"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="comparisons; their chosen answers are SFT's")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--every", type=int, default=50)
    asked = parser.parse_args()
    if asked.what == "steps":
        of_steps(asked.model, asked.pairs, asked.steps, asked.every)
    else:
        of_resuming(asked.model, asked.pairs)


if __name__ == "__main__":
    main()
