"""What the comparisons share: their options, and how a contest is run: losses in fp32 first, then time and memory.

dpo.py, kto.py and reward.py only declare a `Contest`; sft.py, whose rows have to be packed first, uses the parts.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comparison
import sides

SHAPE = "25m"
"""The shape whose results carry the method's name alone."""

Tokens = dict[str, list[int]]
Side = Callable[..., sides.Run]
"""Runs one side: called with a setting, the number of steps, and `tag`, a part of its files' names."""


def as_tokenised(rows: Sequence[Tokens]) -> list[Tokens]:
    return list(rows)


def padded_settings(few: str, micro: int) -> dict[str, list[str]]:
    """Every way to run a rival that pads which could be its best; `few` names running only `micro` rows at a time."""
    alone = ["--micro", str(micro)]
    bf16 = ["--dtype", "bf16"]
    return {
        "fp32": [],
        "fp32 medium": ["--matmul", "medium"],
        f"fp32 medium, {few}": ["--matmul", "medium", *alone],
        "bf16 autocast": bf16,
        "bf16 autocast, checkpointing (its default)": [*bf16, "--checkpointing"],
        f"bf16 autocast, {few}": [*bf16, *alone],
        "bf16 weights": [*bf16, "--weights", "bfloat16"],
        f"bf16 weights, {few}": [*bf16, "--weights", "bfloat16", *alone],
    }


@dataclass(frozen=True)
class Contest:
    """One method on rows that both sides take in file order, a fixed number in every step."""

    name: str  # of the method, of the rival's program and of the results files
    title: str
    kind: str  # of the rows
    rows_per_step: int
    learning_rate: float
    objective: Mapping[str, Any]  # Truing's section of that name
    rival_objective: Sequence[str]  # the same for the rival
    rival_settings: Mapping[str, Sequence[str]]
    expected: Callable[[Sequence[Tokens]], list[Tokens]] = as_tokenised
    """What the rival must make of rows that were tokenised one message list at a time."""
    note: str = ""  # what a reader of the results has to know

    def rival_run(
        self, setting: str, steps: int, *, work: Path, rows: Path, full: bool, python: str, tag: str
    ) -> sides.Run:
        count = steps * self.rows_per_step
        data = sides.first_rows(rows / "rows.jsonl", count)
        tokens = rows / f"{self.name}-first-{count}.tokens.json"
        found = json.loads((rows / "tokens.json").read_text(encoding="utf-8"))[:count]
        tokens.write_text(json.dumps(self.expected(found)), encoding="utf-8")
        options = ["--model", str(work / "model"), "--data", str(data)]
        options += [] if full else ["--adapter", str(work / "adapter")]
        options += ["--tokens", str(tokens), "--steps", str(steps), "--rows", str(self.rows_per_step)]
        options += ["--learning-rate", str(self.learning_rate), *self.rival_objective, *self.rival_settings[setting]]
        report = work / "runs" / f"trl-{self.name}-{tag}-{sides.slug(setting)}.json"
        return sides.run_rival(f"trl_{self.name}.py", setting, options, python=python, report=report)

    def truing_run(
        self, setting: str, steps: int, *, work: Path, rows: Path, full: bool, command: Sequence[str], tag: str
    ) -> sides.Run:
        recipe = sides.truing_recipe(
            work=work,
            full=full,
            data=sides.first_rows(rows / "rows.jsonl", steps * self.rows_per_step),
            objective=self.objective,
            examples=self.rows_per_step,
            steps=steps,
            learning_rate=self.learning_rate,
            changes=sides.TRUING_SETTINGS[setting],
        )
        folder = work / "runs" / f"truing-{self.name}-{tag}-{sides.slug(setting)}"
        return sides.run_truing(setting, recipe, command=command, folder=folder)

    def run(self, source: Path, chosen: argparse.Namespace) -> None:
        """Prepare the rows of `source`, run both sides and write the results."""
        work = chosen.work / chosen.shape
        rows = sides.prepare(self.kind, source, [source, *chosen.corpus], chosen.shape, work)
        both = {"work": work, "rows": rows, "full": chosen.full}
        rival = functools.partial(self.rival_run, **both, python=chosen.rival_python)
        truing = functools.partial(self.truing_run, **both, command=shlex.split(chosen.truing))
        compare(self.name, self.title, rival, truing, chosen, note=self.note)


def arguments(description: str | None, settings: Mapping[str, Sequence[str]], *, steps: int) -> argparse.ArgumentParser:
    """The options every comparison has; the file with its rows is added by each under a name of its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="*", default=[], help="more files for the tokenizer to learn from")
    parser.add_argument("--shape", default=SHAPE)
    parser.add_argument("--full", action="store_true", help="train all weights, without an adapter")
    parser.add_argument("--steps", type=int, default=steps, help="steps of a timed run; the first two do not count")
    parser.add_argument("--loss-steps", type=int, default=20, help="steps of the loss comparison; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--settings", nargs="*", choices=sorted(settings), default=list(settings))
    ours = list(sides.TRUING_SETTINGS)
    parser.add_argument("--ours", nargs="*", choices=ours, default=ours, help="settings of Truing")
    parser.add_argument("--only", choices=["trl", "truing"], help="run one side alone")
    parser.add_argument("--rival-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--truing", default=f"{sys.executable} -m truing", help="command line of Truing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "truing-benchmarks")
    return parser


def compare(
    name: str,
    title: str,
    rival: Side,
    truing: Side,
    chosen: argparse.Namespace,
    *,
    loss_setting: str = "fp32",
    note: str = "",
) -> None:
    """Losses of both sides in fp32, then time and memory of every setting; print them and write the results."""
    sections = [note] if note else []
    if chosen.loss_steps and chosen.only is None:
        theirs = rival(loss_setting, chosen.loss_steps, tag="loss")
        ours = truing("fp32", chosen.loss_steps, tag="loss")
        table, largest = comparison.loss_table(ours, theirs)
        sections += [f"## Losses in fp32\n\nLargest difference over {chosen.loss_steps} steps: {largest:.1e}.", table]
    contestants = []
    if chosen.only != "truing":
        contestants += [functools.partial(rival, setting, chosen.steps, tag="time") for setting in chosen.settings]
    if chosen.only != "trl":
        contestants += [functools.partial(truing, ours, chosen.steps, tag="time") for ours in chosen.ours]
    runs = comparison.alternate(contestants, chosen.rounds)
    table_runs = comparison.merged(runs)
    sections += ["## Time and memory", comparison.speed_table(table_runs), *comparison.ratio_lines(table_runs)]
    how = "all weights" if chosen.full else "LoRA"
    parts = [name, *([chosen.shape] if chosen.shape != SHAPE else []), *(["full"] if chosen.full else [])]
    comparison.write_results("-".join(parts), f"{title}, {how}, {chosen.shape}", sections, runs, vars(chosen))
