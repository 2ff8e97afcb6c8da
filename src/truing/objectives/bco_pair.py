"""Binary Classifier Optimization on pairs."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import FROM_ZERO, LogRatioObjective, Pairs, PairwiseObjective


class BCOPair(LogRatioObjective):
    """L = −log σ(r⁺) − log σ(−r⁻), r = β log π/π_ref: two classifications in place of one comparison."""

    name: ClassVar[str] = "bco_pair"
    paper: ClassVar[str] = "arXiv:2404.04656, eq. 12 without the reward shift"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are good and whose rejected are bad by themselves."
    avoid: ClassVar[str] = "Avoid when both answers of a pair may be good: the rejected one is pushed down anyway."
    watch: ClassVar[str] = (
        FROM_ZERO
        + "\n`rewards/chosen` should rise above 0 and `rewards/rejected` fall below it; `loss` goes from 2 ln 2 "
        "towards 0."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\nBoth rewards on the same side of 0: one of the two classifications goes wrong for most rows, and no shift "
        "takes that up. A lower `optim.lr`, or `dpo`, which asks for the difference only."
    )

    beta: float = Field(default=0.1, gt=0)
    """Scale of the log-ratio; 0.1 as in DPO's paper, 0.01 in this method's (appendix C)."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)

    def start(self) -> float:
        return 2 * math.log(2)
