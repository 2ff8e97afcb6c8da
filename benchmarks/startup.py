"""Seconds from the command to the end of the first optimizer step of a small model, whole data files read.

python benchmarks/startup.py --pairs pairs.json --demonstrations demonstrations.json --rival-python ~/trl/bin/python
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import comparison
import sides

SHAPE = "1m"
EXAMPLES = 4
LEARNING_RATE = 1e-4
PROGRAMS = {"dpo": "trl_dpo.py", "sft": "trl_sft.py"}
OBJECTIVES = {"dpo": {"use": "dpo", "beta": 0.1}, "sft": {"use": "sft"}}


def rival_run(method: str, rows: Path, *, work: Path, python: str) -> sides.Run:
    options = ["--model", str(work / "model"), "--adapter", str(work / "adapter"), "--data", str(rows / "rows.jsonl")]
    options += ["--steps", "1", "--learning-rate", str(LEARNING_RATE)]
    report = work / "runs" / f"trl-startup-{method}.json"
    return sides.run_rival(PROGRAMS[method], method, options, python=python, report=report)


def truing_run(method: str, rows: Path, *, work: Path, command: Sequence[str]) -> sides.Run:
    recipe = sides.truing_recipe(
        full=False,
        work=work,
        data=rows / "rows.jsonl",
        objective=OBJECTIVES[method],
        examples=EXAMPLES,
        steps=1,
        learning_rate=LEARNING_RATE,
        changes={},
    )
    return sides.run_truing(method, recipe, command=command, folder=work / "runs" / f"truing-startup-{method}")


def table(runs: Sequence[sides.Run]) -> str:
    lines = ["| | command to end of first step | whole process |", "|---|---|---|"]
    lines += [f"| {run.name} | {run.first_step_seconds:.2f} s | {run.seconds:.2f} s |" for run in runs]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="comparisons: conversations, chosen, rejected")
    parser.add_argument("--demonstrations", type=Path, required=True, help="instruction, input, output")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["trl", "truing"], help="run one side alone")
    parser.add_argument("--rival-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--truing", default=f"{sys.executable} -m truing", help="command line of Truing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "truing-benchmarks")
    chosen = parser.parse_args()
    work = chosen.work / SHAPE
    corpus = [chosen.pairs, chosen.demonstrations]
    files = {
        "dpo": sides.prepare("pairs", chosen.pairs, corpus, SHAPE, work),
        "sft": sides.prepare("demonstrations", chosen.demonstrations, corpus, SHAPE, work),
    }
    rival = functools.partial(rival_run, work=work, python=chosen.rival_python)
    truing = functools.partial(truing_run, work=work, command=shlex.split(chosen.truing))
    contestants = []
    for method, rows in files.items():
        if chosen.only != "truing":
            contestants.append(functools.partial(rival, method, rows))
        if chosen.only != "trl":
            contestants.append(functools.partial(truing, method, rows))
    runs = comparison.alternate(contestants, chosen.rounds)
    # A process keeps the page cache warm for the next one; the first round only warms up where there are several.
    counted = runs[len(contestants) :] if chosen.rounds > 1 else runs
    merged = [replace(run, losses=[]) for run in comparison.merged(counted)]
    settings = {key: str(value) for key, value in vars(chosen).items()}
    comparison.write_results("startup", "From command to first step", [table(merged)], runs, settings)


if __name__ == "__main__":
    main()
