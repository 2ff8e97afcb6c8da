"""Anchored Preference Optimization, down."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from truing.objectives.pairwise import LogRatioObjective, Pairs


class APODown(LogRatioObjective):
    """L = σ(r⁺) + 1 − σ(r⁺ − r⁻), r = β log π/π_ref: both down, the rejected further."""

    name: ClassVar[str] = "apo_down"
    paper: ClassVar[str] = "arXiv:2408.06266, eq. 8, plus 1"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are worse than what the model writes by itself."
    avoid: ClassVar[str] = "Avoid when the chosen answers are good: it lowers them too (apo_zero)."

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)

    def start(self) -> float:
        return 1.0
