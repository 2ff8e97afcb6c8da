"""Anchored Preference Optimization, down."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from truing.objectives.pairwise import FROM_ZERO, LogRatioObjective, Pairs, PairwiseObjective


class APODown(LogRatioObjective):
    """L = σ(r⁺) + 1 − σ(r⁺ − r⁻), r = β log π/π_ref: both down, the rejected further."""

    name: ClassVar[str] = "apo_down"
    paper: ClassVar[str] = "arXiv:2408.06266, eq. 8, plus 1"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are worse than what the model writes by itself."
    avoid: ClassVar[str] = "Avoid when the chosen answers are good: it lowers them too (`apo_zero`)."
    watch: ClassVar[str] = (
        FROM_ZERO
        + "\nBoth rewards fall, `rewards/rejected` further than `rewards/chosen`; `loss` goes from 1 towards 0."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`rewards/chosen` falls while `rewards/margins` is flat: both answers are unlearned alike, and samples "
        "decay. A lower `optim.lr`, fewer steps; `apo_zero` if the chosen answers are good."
    )

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)

    def start(self) -> float:
        return 1.0
