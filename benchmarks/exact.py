"""How long it takes to go through every answer of a policy in the tour's world, against scoring answers one by one.

python benchmarks/exact.py
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from truing.build.load_result import Opened, open_result
from truing.core.trees import Completion, Tree
from truing.data.packing import pack
from truing.evaluate.exact import Yardstick
from truing.lab.arms import PROMPTS
from truing.world.base_model import write_base_model
from truing.world.reviews import REVIEWS

HERE = Path(__file__).parent
ANSWERS = 4000  # scored one by one; the rest would take as long each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        write_base_model(Path(folder))
        opened = open_result(Path(folder))
        yardstick = Yardstick.of(opened, PROMPTS)
        walked, alone = [], []
        for _ in range(rounds):
            walked.append(seconds(lambda: yardstick.measure(opened)))
            alone.append(seconds(lambda: one_by_one(opened, yardstick)))
    answers = yardstick.answers.size
    single = median(alone) * answers / (ANSWERS * PROMPTS)
    report = "\n".join(
        [
            "# Exact evaluation",
            "",
            f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load "
            f"{os.getloadavg()[0]:.1f}; torch {torch.__version__}. `python benchmarks/exact.py`, medians of {rounds} "
            "rounds in turn.",
            "",
            f"All {answers:,} answers to {PROMPTS} prompts ({yardstick.departures.size:,} prefixes) of a policy of "
            f"65,232 weights: **{median(walked):.2f} s** ({min(walked):.2f} to {max(walked):.2f}), "
            f"{yardstick.departures.size / median(walked):,.0f} prefixes a second.",
            "",
            f"The same answers as completions of one shared prompt each, {ANSWERS:,} of them timed: {single:.1f} s, "
            f"**{single / median(walked):.1f}** times as long.",
            "",
        ]
    )
    print(report)
    (HERE / "results" / "exact.md").write_text(report, encoding="utf-8")


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def one_by_one(opened: Opened, yardstick: Yardstick) -> None:
    """Log-probs of some answers to every prompt, many completions behind a prompt that is computed once."""
    tokenizer = opened.tokenizer
    texts = list(itertools.islice(REVIEWS.answers(yardstick.prompts[0]), ANSWERS))
    ids = [[*tokenizer(f" {text}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
    completions = [Completion(np.array(row, np.int32), np.ones(len(row), np.bool_)) for row in ids]
    for prompt in yardstick.prompts:
        asked = np.array(tokenizer(prompt)["input_ids"], np.int32)
        trees = [Tree(asked, tuple(completions[i : i + 64])) for i in range(0, len(completions), 64)]
        for rows in pack([tree.size for tree in trees], 8192):
            with torch.no_grad():
                opened.model.outputs(opened.model.collate([trees[row] for row in rows]))


if __name__ == "__main__":
    main()
