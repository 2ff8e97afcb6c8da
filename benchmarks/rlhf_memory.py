"""Peak memory of PPO with policy, reference, reward and critic over one base, beside SFT of the same model.

python benchmarks/rlhf_memory.py --pairs pairs.json --corpus demonstrations.json

LoRA of rank 16 everywhere, micro-batches of the same number of tokens, the cache of the rollouts included. The same PPO
is run once more with a model for each role, which must give the same figures.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comparison
import sides

EXACT = ("objective/scores", "objective/kl", "val/mean", "loss/policy", "loss/value")
"""Figures of the first rollout that both ways must agree in."""


def recipes(work: Path, rows: Path, micro_tokens: int, new: int) -> dict[str, dict[str, Any]]:
    base = {
        "model": str(work / "model"),
        "template": "tokenizer",
        "adapter": {"use": "lora", "rank": 16},
        "samples": {"count": 0},
        "batch": {"examples": 16, "micro_tokens": micro_tokens},
    }
    data = {"path": str(rows / "rows.jsonl"), "max_length": 1024, "limit": 64}
    sft = {**base, "objective": {"use": "sft"}, "data": data, "optim": {"max_steps": 3}}
    reward = {**base, "objective": {"use": "reward"}, "data": data, "optim": {"max_steps": 3}}
    rollout = {"rewards": [str(work / "runs" / "memory-reward")], "group_size": 1, "max_new_tokens": new, "epochs": 2}
    prompts = {**data, "max_length": 512}
    ppo = {**base, "objective": {"use": "ppo"}, "data": prompts, "optim": {"max_steps": 4}, "rollout": rollout}
    four = {**ppo, "rollout": {**rollout, "share_base": False}}
    return {"sft": sft, "reward": reward, "ppo, one base": ppo, "ppo, four models": four}


def first_rollout(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:2]]


def table(runs: Sequence[sides.Run]) -> str:
    least = next(run for run in runs if run.setting == "sft").peak_bytes
    lines = ["| | peak RSS | beside SFT |", "|---|---|---|"]
    lines += [f"| {run.setting} | {run.peak_bytes / 1e9:.2f} GB | {run.peak_bytes / least:.2f} |" for run in runs]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, nargs="*", default=[])
    parser.add_argument("--shape", default="25m")
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--truing", default=f"{sys.executable} -m truing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "truing-benchmarks")
    chosen = parser.parse_args()
    work = chosen.work / chosen.shape
    rows = sides.prepare("pairs", chosen.pairs, [chosen.pairs, *chosen.corpus], chosen.shape, work)
    command = shlex.split(chosen.truing)
    runs = []
    folders = {}
    for name, recipe in recipes(work, rows, chosen.micro_tokens, chosen.new_tokens).items():
        folders[name] = work / "runs" / f"memory-{sides.slug(name)}"
        runs.append(sides.run_truing(name, recipe, command=command, folder=folders[name]))
        print(f"  {name}: {runs[-1].peak_bytes / 1e9:.2f} GB", flush=True)
    one, four = (first_rollout(folders[name]) for name in ("ppo, one base", "ppo, four models"))
    largest = max(abs(a[key] - b[key]) for a, b in zip(one, four, strict=True) for key in EXACT)
    sections = [
        table(runs),
        f"Rewards, values, KL and losses of the first rollout differ by at most {largest:.1e} between the two.",
    ]
    settings = {"micro_tokens": chosen.micro_tokens, "new_tokens": chosen.new_tokens, "shape": chosen.shape}
    comparison.write_results("rlhf_memory", "Peak memory of PPO over one base", sections, runs, settings)


if __name__ == "__main__":
    main()
