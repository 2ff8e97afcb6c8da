"""Reward modelling with LoRA against TRL: same start, same pairs in the same order, same settings of the optimizer.

python benchmarks/reward.py --pairs pairs.json --corpus demonstrations.json --rival-python ~/trl/bin/python
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import contest


def whole_conversations(rows: Sequence[contest.Tokens]) -> list[contest.Tokens]:
    """TRL tokenises prompt and answer in one go, without a boundary between them."""
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]


REWARD = contest.Contest(
    name="reward",
    title="Reward modelling",
    kind="pairs",
    rows_per_step=4,
    learning_rate=1e-3,  # at 1e-4 scores stay so near to zero that losses could not differ
    objective={"use": "reward"},
    rival_objective=[],
    rival_settings=contest.padded_settings("one pair at a time", 1),
    expected=whole_conversations,
    note="Both sides train a score head beside the adapter, from zero, so that the first loss is ln 2.",
)


def main() -> None:
    parser = contest.arguments(__doc__, REWARD.rival_settings, steps=8)
    parser.add_argument("--pairs", type=Path, required=True, help="comparisons: conversations, chosen, rejected")
    chosen = parser.parse_args()
    REWARD.run(chosen.pairs, chosen)


if __name__ == "__main__":
    main()
