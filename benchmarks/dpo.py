"""DPO with LoRA against TRL: same start, same pairs in the same order, same settings of the optimizer.

python benchmarks/dpo.py --pairs pairs.json --corpus demonstrations.json --rival-python ~/trl/bin/python
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import comparison
import sides

PAIRS_PER_STEP = 4
LEARNING_RATE = 1e-4
BETA = 0.1

# Every way to run the rival that could be its best. `padding_free` is not among them: TRL 1.16 answers it for DPO with
# "temporarily unavailable" and pads.
RIVAL_SETTINGS: dict[str, list[str]] = {
    "fp32": [],
    "fp32 medium": ["--matmul", "medium"],
    "fp32 medium, one pair at a time": ["--matmul", "medium", "--micro", "1"],
    "bf16 autocast": ["--dtype", "bf16"],
    "bf16 autocast, checkpointing (its default)": ["--dtype", "bf16", "--checkpointing"],
    "bf16 autocast, one pair at a time": ["--dtype", "bf16", "--micro", "1"],
    "bf16 weights": ["--dtype", "bf16", "--weights", "bfloat16"],
    "bf16 weights, one pair at a time": ["--dtype", "bf16", "--weights", "bfloat16", "--micro", "1"],
}


def rival_run(setting: str, steps: int, *, work: Path, rows: Path, python: str, tag: str) -> sides.Run:
    report = work / "runs" / f"trl-dpo-{tag}-{sides.slug(setting)}.json"
    data = sides.first_rows(rows / "rows.jsonl", steps * PAIRS_PER_STEP)
    options = ["--model", str(work / "model"), "--adapter", str(work / "adapter"), "--data", str(data)]
    options += ["--steps", str(steps), "--learning-rate", str(LEARNING_RATE), "--pairs", str(PAIRS_PER_STEP)]
    options += ["--beta", str(BETA), *RIVAL_SETTINGS[setting]]
    run = sides.run_rival("trl_dpo.py", setting, options, python=python, report=report)
    check_tokens(rows / "tokens.json", report.with_suffix(".tokens.json"))
    return run


def check_tokens(expected_file: Path, found_file: Path) -> None:
    """Stop unless the rival tokenised every row exactly as the tokenizer does prompt and answers apart."""
    expected = json.loads(expected_file.read_text(encoding="utf-8"))
    found = json.loads(found_file.read_text(encoding="utf-8"))
    for row, (wanted, got) in enumerate(zip(expected, found, strict=False), start=1):
        if wanted != got:
            raise SystemExit(f"row {row}: TRL trains on other tokens than the tokenizer gives; the losses cannot agree")


def truing_run(setting: str, steps: int, *, work: Path, rows: Path, command: Sequence[str], tag: str) -> sides.Run:
    recipe = sides.truing_recipe(
        work=work,
        data=sides.first_rows(rows / "rows.jsonl", steps * PAIRS_PER_STEP),
        objective={"use": "dpo", "beta": BETA},
        examples=PAIRS_PER_STEP,
        steps=steps,
        learning_rate=LEARNING_RATE,
        changes=sides.TRUING_SETTINGS[setting],
    )
    folder = work / "runs" / f"truing-dpo-{tag}-{sides.slug(setting)}"
    return sides.run_truing(setting, recipe, command=command, folder=folder)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="comparisons: conversations, chosen, rejected")
    parser.add_argument("--corpus", type=Path, nargs="*", default=[], help="more files for the tokenizer to learn from")
    parser.add_argument("--shape", default="25m")
    parser.add_argument("--steps", type=int, default=8, help="steps of a timed run; the first two do not count")
    parser.add_argument("--loss-steps", type=int, default=20, help="steps of the loss comparison; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--settings", nargs="*", choices=sorted(RIVAL_SETTINGS), default=list(RIVAL_SETTINGS))
    parser.add_argument("--only", choices=["trl", "truing"], help="run one side alone")
    parser.add_argument("--rival-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--truing", default=f"{sys.executable} -m truing", help="command line of Truing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "truing-benchmarks")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    work = chosen.work / chosen.shape
    rows = sides.prepare("pairs", chosen.pairs, [chosen.pairs, *chosen.corpus], chosen.shape, work)
    rival = functools.partial(rival_run, work=work, rows=rows, python=chosen.rival_python)
    truing = functools.partial(truing_run, work=work, rows=rows, command=shlex.split(chosen.truing))
    sections = []
    if chosen.loss_steps and chosen.only is None:
        theirs = rival("fp32", chosen.loss_steps, tag="loss")
        ours = truing("fp32", chosen.loss_steps, tag="loss")
        table, largest = comparison.loss_table(ours, theirs)
        sections += [f"## Losses in fp32\n\nLargest difference over {chosen.loss_steps} steps: {largest:.1e}.", table]
    contestants = []
    if chosen.only != "truing":
        contestants += [functools.partial(rival, setting, chosen.steps, tag="time") for setting in chosen.settings]
    if chosen.only != "trl":
        contestants += [functools.partial(truing, ours, chosen.steps, tag="time") for ours in sides.TRUING_SETTINGS]
    runs = comparison.alternate(contestants, chosen.rounds)
    table_runs = comparison.merged(runs)
    sections += ["## Time and memory", comparison.speed_table(table_runs), *comparison.ratio_lines(table_runs)]
    comparison.write_results("dpo", f"DPO with LoRA, {chosen.shape}", sections, runs, vars(chosen))


if __name__ == "__main__":
    main()
