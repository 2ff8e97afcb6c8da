"""Binary Classifier Optimization on pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.base import expect_start
from truing.objectives.pairwise import NOT_THE_START, Pairs, PairwiseObjective


class BCOPair(PairwiseObjective):
    """L = −log σ(r⁺) − log σ(−r⁻), r = β log π/π_ref: two classifications in place of one comparison."""

    name: ClassVar[str] = "bco_pair"
    paper: ClassVar[str] = "arXiv:2404.04656, eq. 12 without the reward shift"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are good and whose rejected are bad by themselves."
    avoid: ClassVar[str] = "Avoid when both answers of a pair may be good: the rejected one is pushed down anyway."

    beta: float = Field(default=0.1, gt=0)
    """Scale of the implicit reward."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.beta * pairs.chosen_logratio, self.beta * pairs.rejected_logratio

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        return expect_start(loss, 2 * math.log(2), NOT_THE_START)
