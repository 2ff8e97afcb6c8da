"""Binary Classifier Optimization on pairs."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from truing.objectives.pairwise import LogRatioObjective, Pairs


class BCOPair(LogRatioObjective):
    """L = −log σ(r⁺) − log σ(−r⁻), r = β log π/π_ref: two classifications in place of one comparison."""

    name: ClassVar[str] = "bco_pair"
    paper: ClassVar[str] = "arXiv:2404.04656, eq. 12 without the reward shift"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are good and whose rejected are bad by themselves."
    avoid: ClassVar[str] = "Avoid when both answers of a pair may be good: the rejected one is pushed down anyway."

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)

    def start(self) -> float:
        return 2 * math.log(2)
