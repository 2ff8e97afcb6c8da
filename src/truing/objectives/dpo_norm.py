"""Length-normalised DPO."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import FROM_ZERO, LogRatioObjective, Pairs, PairwiseObjective


class NormalisedDPO(LogRatioObjective):
    """L = −log σ(β[(log π/π_ref)(y⁺)/|y⁺| − (log π/π_ref)(y⁻)/|y⁻|])."""

    name: ClassVar[str] = "dpo_norm"
    paper: ClassVar[str] = "arXiv:2411.15124 (Tülu 3), eq. 6"
    purpose: ClassVar[str] = "Comparisons whose lengths differ much, with the pull to the reference kept."
    avoid: ClassVar[str] = "Avoid DPO's β: per-token differences are hundreds of times smaller, so β is near 5."
    watch: ClassVar[str] = (
        FROM_ZERO
        + "\nRewards are β times the log-ratio per token: at β 5 a `rewards/chosen` of −0.5 is a fall by 0.1 nat a "
        "token."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`rewards/chosen` below −0.5 to −1 at β 5: the chosen answers are unlearned too. A lower `optim.lr`."
        "\n`rewards/margins` stays in thousandths: `beta` has DPO's value; it belongs near 5."
    )

    beta: float = Field(default=5.0, gt=0)
    """Scale of the per-token log-ratio; 5 in Tülu 3."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return -F.logsigmoid(chosen - rejected)

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return (
            self.beta * pairs.chosen_logratio / pairs.chosen_length,
            self.beta * pairs.rejected_logratio / pairs.rejected_length,
        )

    def start(self) -> float:
        return math.log(2)
