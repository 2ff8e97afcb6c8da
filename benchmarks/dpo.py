"""DPO with LoRA against TRL: same start, same pairs in the same order, same settings of the optimizer.

python benchmarks/dpo.py --pairs pairs.json --corpus demonstrations.json --rival-python ~/trl/bin/python
"""

from __future__ import annotations

from pathlib import Path

import contest

BETA = 0.1

# `padding_free` is not among the rival's settings: TRL 1.16 answers it for DPO with "temporarily unavailable" and pads.
DPO = contest.Contest(
    name="dpo",
    title="DPO",
    kind="pairs",
    rows_per_step=4,
    learning_rate=1e-4,
    objective={"use": "dpo", "beta": BETA},
    rival_objective=["--beta", str(BETA)],
    rival_settings=contest.padded_settings("one pair at a time", 1),
)


def main() -> None:
    parser = contest.arguments(__doc__, DPO.rival_settings, steps=8)
    parser.add_argument("--pairs", type=Path, required=True, help="comparisons: conversations, chosen, rejected")
    chosen = parser.parse_args()
    DPO.run(chosen.pairs, chosen)


if __name__ == "__main__":
    main()
