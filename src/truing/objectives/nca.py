"""Noise Contrastive Alignment on pairs."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import FROM_ZERO, LogRatioObjective, Pairs, PairwiseObjective


class NCA(LogRatioObjective):
    """L = −log σ(r⁺) − ½ log σ(−r⁺) − ½ log σ(−r⁻), r = β log π/π_ref: rewards absolute, not only apart."""

    name: ClassVar[str] = "nca"
    paper: ClassVar[str] = "arXiv:2402.05369, eq. 11 with two answers"
    purpose: ClassVar[str] = "Comparisons where the chosen answers' likelihood must not fall."
    avoid: ClassVar[str] = "Avoid when only the ranking matters: `dpo` separates a pair further at the same β."
    watch: ClassVar[str] = (
        FROM_ZERO
        + "\n`rewards/chosen` should stay at 0 or above (its own optimum is ln 2) while `rewards/rejected` falls. At β "
        "0.01 figures are small: 0.1 is 10 nats."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`rewards/chosen` falls below 0: the rejected answers, which share words with the chosen, drag it along. A "
        "lower `optim.lr`."
    )

    beta: float = Field(default=0.01, gt=0)
    """Scale of the implicit reward; 0.01 in the paper (appendix C)."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)

    def start(self) -> float:
        return 2 * math.log(2)
