"""Predicted seconds of a step beside those of real runs on this CPU: as `train` says them, and with `plan --measure`.

python benchmarks/plan_time.py

Models and rows are those of plan_cpu.py. Run it on a quiet machine: whatever else computes makes steps slower, and
rates too, but not at the same moment.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import comparison
import plan_cpu

STEPS, WARM = 7, 2
"""Steps of a run, and how many of them are not counted."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of a step."""

    name: str
    said: float
    """By `train`, from a product that it times when it begins."""
    measured_rates: float
    """By `plan --measure`."""
    real: float


def cells() -> Iterator[plan_cpu.Cell]:
    for method, adapter, length in itertools.product(
        ("sft", "dpo", "kto", "reward", "ppo"), ("none", "lora"), (256, 1024)
    ):
        yield plan_cpu.Cell(method, adapter, length, 16_384, False)
    for method, adapter in itertools.product(("sft", "dpo"), ("none", "lora")):
        yield plan_cpu.Cell(method, adapter, 512, 16_384, True)
        yield plan_cpu.Cell(method, adapter, 512, 16_384, False, "bf16")


def measure(cell: plan_cpu.Cell, work: Path, command: Sequence[str]) -> Timed:
    plan_cpu.write_model(work / "model", cell)
    plan_cpu.write_rows(work / "rows.jsonl", cell)
    (work / "length_reward.py").write_text(
        "def length(prompts, completions, **columns):\n    return [len(c) % 7 for c in completions]\n", encoding="utf-8"
    )
    recipe = plan_cpu.recipe(cell, work) | {"optim": {"max_steps": STEPS}}
    (work / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    run = work / "run"
    called([*command, "train", str(work / "recipe.yaml"), "--output", str(run)])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    (timed,) = json.loads(called([*command, "plan", str(work / "recipe.yaml"), "--measure", "--json"]))
    real = statistics.median(row["seconds"] for row in rows[WARM:])
    if cell.method == "ppo":
        real = statistics.fmean(row["seconds"] for row in rows[WARM:])  # one step of some has the rollout
    return Timed(cell.name, plan["seconds"] / STEPS, timed["seconds"] / STEPS, real)


def called(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def verdict(found: Sequence[Timed]) -> str:
    said = [one.said / one.real for one in found]
    rates = [one.measured_rates / one.real for one in found]
    return (
        f"{len(found)} runs, predicted over real seconds of a step: as train says {statistics.median(said):.2f} in the "
        f"median ({min(said):.2f} to {max(said):.2f}), with --measure {statistics.median(rates):.2f} "
        f"({min(rates):.2f} to {max(rates):.2f})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truing", default=f"{sys.executable} -m truing")
    parser.add_argument("--every", type=int, default=1, help="run each so-manieth cell alone")
    parser.add_argument("--only", default="", help="run cells whose name has this in it, and write no results")
    chosen = parser.parse_args()
    found = []
    for cell in list(cells())[:: chosen.every]:
        if chosen.only not in cell.name:
            continue
        with tempfile.TemporaryDirectory() as work:
            found.append(measure(cell, Path(work), shlex.split(chosen.truing)))
        one = found[-1]
        print(f"{one.said:8.2f} {one.measured_rates:8.2f} {one.real:8.2f} s  {one.name}", flush=True)
    print(verdict(found))
    if not chosen.only:
        lines = ["| run | as train says | with --measure | real | ratios |", "|---|---|---|---|---|"]
        lines += [
            f"| {one.name} | {one.said:.2f} s | {one.measured_rates:.2f} s | {one.real:.2f} s | "
            f"{one.said / one.real:.2f}, {one.measured_rates / one.real:.2f} |"
            for one in found
        ]
        sections = [verdict(found), "\n".join(lines)]
        comparison.write_table("plan_time", "Planned time beside real", sections, [asdict(one) for one in found])


if __name__ == "__main__":
    main()
