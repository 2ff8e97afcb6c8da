"""KTO with LoRA against TRL: same start, same judged answers in the same order, same settings of the optimizer.

TRL takes the mismatched answers of its KL estimate from Truing: each side has its own way to pair them, and the losses
can only agree on the same ones. The interpreter that runs this therefore needs Truing itself.

python benchmarks/kto.py --judgements judgements.json --corpus pairs.json demonstrations.json \
    --rival-python ~/trl/bin/python
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import contest
import sides
from truing.core.trees import Completion, Tree
from truing.data.mismatch import with_mismatches

BETA = 0.1
DESIRABLE, UNDESIRABLE = 1.0, 1.0  # weights; the judgements of the demonstration set are half and half


def with_truings_mismatches(rows: Sequence[contest.Tokens]) -> list[contest.Tokens]:
    """Add to every row the answer that Truing sets beside it when these rows are all of its data."""
    trees = with_mismatches([tree_of(row) for row in rows], sides.MAX_LENGTH)
    return [{**row, "mismatched": tree.completions[1].tokens.tolist()} for row, tree in zip(rows, trees, strict=True)]


def tree_of(row: contest.Tokens) -> Tree:
    answer = np.asarray(row["completion"], dtype=np.int32)
    return Tree(np.asarray(row["prompt"], dtype=np.int32), (Completion(answer, np.ones(len(answer), dtype=bool)),))


KTO = contest.Contest(
    name="kto",
    title="KTO",
    kind="judgements",
    rows_per_step=8,
    learning_rate=1e-4,
    objective={"use": "kto", "beta": BETA, "desirable_weight": DESIRABLE, "undesirable_weight": UNDESIRABLE},
    rival_objective=[f"--beta={BETA}", f"--desirable-weight={DESIRABLE}", f"--undesirable-weight={UNDESIRABLE}"],
    rival_settings=contest.padded_settings("two rows at a time", 2),
    expected=with_truings_mismatches,
    note=(
        "Both sides estimate the KL divergence from the same mismatched answers, those of Truing; left to itself, TRL "
        "takes the answer of the row before, within a forward pass. Truing averages and clamps the estimate over the "
        "step, TRL over a forward pass: the losses are compared where that is the whole step. With two rows at a time "
        "TRL computes as much, but with an estimate from two rows, clamped for these two, hence another loss."
    ),
)


def main() -> None:
    parser = contest.arguments(__doc__, KTO.rival_settings, steps=8)
    parser.add_argument("--judgements", type=Path, required=True, help="judged answers: messages, label")
    chosen = parser.parse_args()
    KTO.run(chosen.judgements, chosen)


if __name__ == "__main__":
    main()
