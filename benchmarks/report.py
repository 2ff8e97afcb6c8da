"""How long `truing report` takes: 50 runs of 1,000 steps over each other, and one of them alone.

    python benchmarks/report.py [--runs 50] [--steps 1000] [--times 3]

The runs are made up: the figures of PPO as it writes them, each a random walk. Time is that of the whole command in a
process of its own, start of the interpreter included; no torch is loaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from truing.recipe.load import dump, recipe_from

FIGURES = {
    "loss": 0.1,
    "grad_norm": 2.0,
    "objective/scores": 0.0,
    "objective/rlhf_reward": 0.0,
    "objective/kl": 3.0,
    "objective/entropy": 60.0,
    "objective/kl_coef": 0.05,
    "completions/length": 30.0,
    "completions/ended": 0.8,
    "policy/approxkl": 0.01,
    "policy/clipfrac": 0.1,
    "val/ratio": 1.0,
    "val/clipfrac": 0.1,
    "val/explained_variance": 0.5,
    "val/mean": 0.0,
    "loss/policy": -0.01,
    "loss/value": 0.3,
    "rewards/happy": 0.5,
}


def recipe_of(seed: int, steps: int) -> str:
    """A resolved recipe of PPO with every default written out."""
    return dump(
        recipe_from(
            {
                "model": "models/base",
                "objective": {"use": "ppo", "kl_coef": 0.05},
                "data": {"path": "prompts.jsonl"},
                "rollout": {"rewards": ["runs/reward"]},
                "optim": {"lr": 1e-5 * (1 + seed), "max_steps": steps},
                "seed": seed,
            }
        )
    )


def make_run(folder: Path, seed: int, steps: int) -> None:
    """Write what a run of so many steps leaves behind, weights aside."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    walks = {name: start + 0.02 * random.normal(size=steps).cumsum() for name, start in FIGURES.items()}
    with (folder / "metrics.jsonl").open("w") as handle:
        for step in range(1, steps + 1):
            row = {"step": step, "learning_rate": 1e-5 * (1 - step / steps), "tokens": 4000, "seconds": 0.5}
            row |= {"num_tokens": 4000 * step, "rows": 8 * step, "skipped_steps": 0, "memory_bytes": 500_000_000}
            row |= {name: float(walk[step - 1]) for name, walk in walks.items()}
            if step % 200 == 0:
                row |= {"eval_scores": float(random.normal()), "eval_scores/half_width": 0.1}
            handle.write(json.dumps(row) + "\n")
    (folder / "recipe.yaml").write_text(recipe_of(seed, steps))
    (folder / "plan.json").write_text(json.dumps({"steps": steps, "bytes": {"weights": 10**9, "optimizer": 10**9}}))
    (folder / "data.json").write_text(json.dumps({"rows": {"read": 64, "used": 64}}))
    (folder / "environment.json").write_text(json.dumps({"device": "cpu", "seed": seed}))
    samples = [
        {"step": step, "prompt": f"Prompt {n}", "completion": "word " * 40} for step in (0, steps) for n in range(3)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (folder / "final").mkdir()


def timed(runs: list[Path], output: Path, times: int) -> float:
    """The median wall time of the command, in seconds."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        command = [sys.executable, "-m", "truing", "report", *map(str, runs), "--output", str(output)]
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    """Make the runs, time the reports, print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / f"run-{seed:02}" for seed in range(asked.runs)]
        for seed, run in enumerate(runs):
            make_run(run, seed, asked.steps)
        for chosen in (runs[:1], runs):
            output = Path(folder) / "report.html"
            seconds = timed(chosen, output, asked.times)
            size = output.stat().st_size / 1e6
            made = f"{len(chosen):3} runs of {asked.steps:,} steps"
            print(f"{made}: {seconds:.2f} s (median of {asked.times}), {size:.1f} MB")


if __name__ == "__main__":
    main()
