"""SFT with packing against TRL: the same examples in every step, packed by each engine in its own way.

TRL packs first; from its packed rows steps of equal numbers of rows *and* of examples are put together, and Truing
gets a file with the examples of those steps in that order. So a fixed number of examples per step means the same
examples in every step on both sides, and the losses must agree.

python benchmarks/sft.py --demonstrations demonstrations.json --corpus pairs.json --rival-python ~/trl/bin/python
"""

from __future__ import annotations

import functools
import json
import random
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import contest
import sides

ROWS_PER_STEP = 4
LEARNING_RATE = 1e-3

# TRL puts the packed rows of one forward pass end to end and, on a CPU, masks attention over all of them: one row at a
# time, accumulated, is its better setting wherever attention counts.
RIVAL_SETTINGS: dict[str, list[str]] = {
    "fp32": [],
    "fp32, one row at a time": ["--micro", "1"],
    "fp32 medium, one row at a time": ["--matmul", "medium", "--micro", "1"],
    "bf16 autocast": ["--dtype", "bf16"],
    "bf16 autocast, checkpointing (its default)": ["--dtype", "bf16", "--checkpointing"],
    "bf16 autocast, one row at a time": ["--dtype", "bf16", "--micro", "1"],
    "bf16 weights, one row at a time": ["--dtype", "bf16", "--weights", "bfloat16", "--micro", "1"],
}
LOSS_SETTING = "fp32, one row at a time"


@dataclass(frozen=True)
class Plan:
    """Which packed rows make up the steps, and which examples those are."""

    rows: list[int]  # ROWS_PER_STEP packed rows a step, step after step
    examples: list[int]  # examples_per_step examples a step, in the order of the packed rows
    examples_per_step: int


def equal_steps(packed: Sequence[Sequence[int]], steps: int, seed: int = 0) -> Plan:
    """Choose `steps` groups of packed rows, each with the same number of examples.

    Draws all rows of a group but one at random and looks for a last row that brings it to the mean.
    """
    chance = random.Random(seed)
    target = round(ROWS_PER_STEP * sum(map(len, packed)) / len(packed))
    left = list(range(len(packed)))
    groups: list[list[int]] = []
    for _ in range(100_000):
        if len(groups) == steps:
            break
        drawn = chance.sample(left, ROWS_PER_STEP - 1)
        missing = target - sum(len(packed[row]) for row in drawn)
        last = next((row for row in left if row not in drawn and len(packed[row]) == missing), None)
        if last is not None:
            groups.append([*drawn, last])
            left = [row for row in left if row not in groups[-1]]
    if len(groups) < steps:
        raise SystemExit(f"only {len(groups)} of {steps} steps of {target} examples each could be put together")
    rows = list(chain.from_iterable(groups))
    return Plan(rows=rows, examples=[index for row in rows for index in packed[row]], examples_per_step=target)


def make_plan(steps: int, *, work: Path, rows: Path, python: str) -> tuple[Plan, Path, Path]:
    """Let TRL pack, check its tokens and labels, and write the rival's order and Truing's data file."""
    report = work / "runs" / "trl-sft-plan.json"
    sides.run_rival("trl_sft.py", "plan", [*rival_options(1, work, rows), "--plan-only"], python=python, report=report)
    packed = json.loads(report.with_suffix(".packed.json").read_text(encoding="utf-8"))
    check_tokens(json.loads((rows / "tokens.json").read_text(encoding="utf-8")), packed)
    plan = equal_steps(packed["examples"], steps)
    order = work / "runs" / "sft-order.json"
    order.write_text(json.dumps(plan.rows), encoding="utf-8")
    lines = (rows / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    ordered = rows / "ordered.jsonl"
    ordered.write_text("".join(lines[index] for index in plan.examples), encoding="utf-8")
    print(f"{len(packed['examples'])} packed rows; {steps} steps of {plan.examples_per_step} examples each")
    return plan, order, ordered


def check_tokens(expected: list[dict[str, list[int]]], packed: dict[str, list[list[int]]]) -> None:
    """Stop unless every packed row is its examples end to end, whole, with only the completions as labels."""
    for row, members in enumerate(packed["examples"]):
        tokens = [token for index in members for token in expected[index]["prompt"] + expected[index]["completion"]]
        labels = [
            label
            for index in members
            for label in [-100] * len(expected[index]["prompt"]) + expected[index]["completion"]
        ]
        if packed["input_ids"][row] != tokens or packed["labels"][row] != labels:
            raise SystemExit(f"packed row {row} holds other tokens or labels than its examples give")


def rival_options(steps: int, work: Path, rows: Path, *, full: bool = False) -> list[str]:
    options = ["--model", str(work / "model"), "--data", str(rows / "rows.jsonl")]
    options += [] if full else ["--adapter", str(work / "adapter")]
    return [*options, "--steps", str(steps), "--learning-rate", str(LEARNING_RATE), "--rows", str(ROWS_PER_STEP)]


def rival_run(
    setting: str, steps: int, *, work: Path, rows: Path, order: Path, full: bool, python: str, tag: str
) -> sides.Run:
    options = [*rival_options(steps, work, rows, full=full), "--order", str(order), *RIVAL_SETTINGS[setting]]
    report = work / "runs" / f"trl-sft-{tag}-{sides.slug(setting)}.json"
    return sides.run_rival("trl_sft.py", setting, options, python=python, report=report)


def truing_run(
    setting: str, steps: int, *, work: Path, data: Path, examples: int, full: bool, command: Sequence[str], tag: str
) -> sides.Run:
    recipe = sides.truing_recipe(
        work=work,
        full=full,
        data=sides.first_rows(data, steps * examples),
        objective={"use": "sft"},
        examples=examples,
        steps=steps,
        learning_rate=LEARNING_RATE,
        changes=sides.TRUING_SETTINGS[setting],
    )
    folder = work / "runs" / f"truing-sft-{tag}-{sides.slug(setting)}"
    return sides.run_truing(setting, recipe, command=command, folder=folder)


def main() -> None:
    parser = contest.arguments(__doc__, RIVAL_SETTINGS, steps=10)
    parser.add_argument("--demonstrations", type=Path, required=True, help="instruction, input, output")
    chosen = parser.parse_args()
    work = chosen.work / chosen.shape
    corpus = [*chosen.corpus, chosen.demonstrations]
    rows = sides.prepare("demonstrations", chosen.demonstrations, corpus, chosen.shape, work)
    most = max(chosen.steps, chosen.loss_steps)
    plan, order, ordered = make_plan(most, work=work, rows=rows, python=chosen.rival_python)
    rival = functools.partial(
        rival_run, work=work, rows=rows, order=order, full=chosen.full, python=chosen.rival_python
    )
    truing = functools.partial(
        truing_run,
        work=work,
        data=ordered,
        examples=plan.examples_per_step,
        full=chosen.full,
        command=shlex.split(chosen.truing),
    )
    contest.compare("sft", "SFT with packing", rival, truing, chosen, loss_setting=LOSS_SETTING)


if __name__ == "__main__":
    main()
