"""DPO on pairs that the policy wrote itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from truing.core.batch import Batch, Outputs, Totals
from truing.core.reduce import Share
from truing.objectives.base import expect_start
from truing.objectives.dpo import DPO
from truing.objectives.pairwise import NOT_THE_START
from truing.objectives.policy_gradient import Picked, Prepared, RolloutObjective, summary


class OnlineDPO(RolloutObjective):
    """L = −log σ(β[(log π/π_ref)(y⁺) − (log π/π_ref)(y⁻)]), y⁺ and y⁻ the best and the worst scored of a prompt.

    Prompts whose completions all score the same are left out, where TRL takes the first of two for the better one.
    """

    name: ClassVar[str] = "online_dpo"
    paper: ClassVar[str] = "arXiv:2402.04792, section 3.2; the loss: arXiv:2305.18290, eq. 7"
    purpose: ClassVar[str] = "DPO where a reward is at hand: it compares what the policy writes now."
    avoid: ClassVar[str] = "Avoid where the reward is a poor judge: `dpo` on people's comparisons needs none."
    watch: ClassVar[str] = (
        "`objective/scores`, of everything sampled, should rise.\n"
        "`rewards/accuracies` and `rewards/margins` start at a half and at 0, and grow slowly; `loss` starts at ln 2."
    )
    failure: ClassVar[str] = (
        "`rewards/equal_groups` near 1: the reward does not tell completions apart.\n"
        "`objective/kl` grows with worse samples: raise beta."
    )
    learning_rate: ClassVar[float] = 5e-7
    group_size: ClassVar[int] = 2
    least_group: ClassVar[int] = 2

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference; 0.1 in the paper."""

    def pick(self, scores: Sequence[float]) -> Picked:
        best = max(range(len(scores)), key=lambda n: scores[n])
        worst = min(range(len(scores)), key=lambda n: scores[n])
        if scores[best] == scores[worst]:
            return Picked(())
        return Picked((best, worst), ((0, 1),))

    def prepare(self, batches: Sequence[Batch], memory: Mapping[str, float]) -> Prepared:
        return Prepared([{} for _ in batches], summary(batches), {})

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        return DPO(beta=self.beta)(outputs, batch, totals)

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        return expect_start(loss, math.log(2), NOT_THE_START)
