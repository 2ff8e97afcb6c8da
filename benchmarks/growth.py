"""How cost grows: with the pairs of a file, and with the tokens of a step.

    python benchmarks/growth.py --corpus PAIRS.json

First DPO steps over the first 1,000, 10,000 and 100,000 of the same made-up pairs: tokens a second and memory should
not notice. Then steps of one tree each, from 512 to 8,192 tokens, half of them prompt: seconds a token should not grow
but for attention, whose share the cost formula gives.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import comparison
import sides

PAIRS = (1_000, 10_000, 100_000)
TOKENS = (512, 1_024, 2_048, 4_096, 8_192)
STEPS, WARM = 30, 5
TEXT = (
    "the a cat dog once upon time little girl boy tree house happy sad play ran went saw big small red blue ball day "
    "sun park mom dad friend said yes no smile laugh"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="files the tokenizer learns from")
    parser.add_argument("--truing", default=f"{sys.executable} -m truing", help="command line of Truing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "truing-benchmarks")
    chosen = parser.parse_args()
    command = shlex.split(chosen.truing)
    sections = [
        "## Pairs in the file",
        of_pairs(chosen.work / "1m", chosen.corpus, command),
        "## Tokens of a step",
        of_tokens(chosen.work / "25m", chosen.corpus, command),
    ]
    comparison.write_table("growth", "How cost grows", sections, [])


def of_pairs(work: Path, corpus: Sequence[Path], command: Sequence[str]) -> str:
    """DPO on the 1 M shape over ever more pairs."""
    sides.make_model("1m", corpus, work)
    file = work / "growth" / "pairs.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in made_up(max(PAIRS)))
    lines = ["| pairs | seconds to the first step | tokens a second | peak RSS |", "|---|---|---|---|"]
    for count in PAIRS:
        run = trained(work, sides.first_rows(file, count), command, STEPS)
        lines.append(
            f"| {count:,} | {run.first_step_seconds:.0f} | {speed(run):,.0f} | {run.peak_bytes / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def of_tokens(work: Path, corpus: Sequence[Path], command: Sequence[str]) -> str:
    """DPO on the 25 M shape, a tree of so many tokens in each step."""
    sides.make_model("25m", corpus, work)
    lines = ["| tokens of a tree | seconds a step | microseconds a token | of 512 tokens' |", "|---|---|---|---|"]
    first = 0.0
    for tokens in TOKENS:
        file = work / "growth" / f"tree-{tokens}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = {"prompt": tokens // 2, "chosen": tokens // 4, "rejected": tokens // 4}
        draw = random.Random(tokens)
        rows = [{side: " ".join(draw.choices(TEXT.split(), k=k)) for side, k in text.items()} for _ in range(12)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        run = trained(work, file, command, 12, examples=1)
        each = 1 / speed(run)
        first = first or each
        lines.append(
            f"| {run.step_tokens[-1]:,} | {run.seconds_per_step:.2f} | {1e6 * each:.0f} | {each / first:.2f} |"
        )
    return "\n".join(lines)


def trained(work: Path, data: Path, command: Sequence[str], steps: int, examples: int = 8) -> sides.Run:
    """A run of DPO with LoRA in bf16."""
    recipe = sides.truing_recipe(
        work=work,
        full=False,
        data=data,
        objective={"use": "dpo"},
        examples=examples,
        steps=steps,
        learning_rate=1e-4,
        changes={**sides.TRUING_SETTINGS["bf16"], "data": {"max_length": 8_192}, "template": "plain"},
    )
    return sides.run_truing("bf16", recipe, command=command, folder=work / "runs" / f"growth-{data.stem}")


def speed(run: sides.Run) -> float:
    """Tokens a second after the first steps."""
    return sum(run.step_tokens[WARM:]) / sum(run.step_seconds[WARM:])


def made_up(count: int) -> Iterator[dict[str, str]]:
    """Pairs of short answers to prompts that are all different."""
    draw, words = random.Random(0), TEXT.split()
    for number in range(count):
        yield {
            "prompt": " ".join([*draw.choices(words, k=40), str(number)]),
            "chosen": " ".join(draw.choices(words, k=draw.randrange(20, 90))),
            "rejected": " ".join(draw.choices(words, k=draw.randrange(20, 90))),
        }


if __name__ == "__main__":
    main()
