"""Anchored Preference Optimization, zero."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from truing.objectives.pairwise import FROM_ZERO, LogRatioObjective, Pairs, PairwiseObjective


class APOZero(LogRatioObjective):
    """L = 1 − σ(r⁺) + σ(r⁻), r = β log π/π_ref: chosen up and rejected down, each against the reference itself."""

    name: ClassVar[str] = "apo_zero"
    paper: ClassVar[str] = "arXiv:2408.06266, eq. 7, plus 1"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are better than what the model writes by itself."
    avoid: ClassVar[str] = "Avoid when the chosen answers are worse than the model's own (`apo_down`)."
    watch: ClassVar[str] = (
        FROM_ZERO
        + "\nUnlike in `dpo`, `rewards/chosen` should rise above 0 while `rewards/rejected` falls below it; `loss` "
        "goes from 1 towards 0."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`rewards/chosen` falls below 0: the rate is too high, or the chosen answers are worse than the model's "
        "own. A lower `optim.lr`, or `apo_down`."
    )

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)

    def start(self) -> float:
        return 1.0
