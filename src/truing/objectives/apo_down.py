"""Anchored Preference Optimization, down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from truing.objectives.base import expect_start
from truing.objectives.pairwise import NOT_THE_START, Pairs, PairwiseObjective


class APODown(PairwiseObjective):
    """L = σ(r⁺) + 1 − σ(r⁺ − r⁻), r = β log π/π_ref: both down, the rejected further."""

    name: ClassVar[str] = "apo_down"
    paper: ClassVar[str] = "arXiv:2408.06266, eq. 8, plus 1"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are worse than what the model writes by itself."
    avoid: ClassVar[str] = "Avoid when the chosen answers are good: it lowers them too (apo_zero)."

    beta: float = Field(default=0.1, gt=0)
    """Scale of the implicit reward."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.beta * pairs.chosen_logratio, self.beta * pairs.rejected_logratio

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        return expect_start(loss, 1.0, NOT_THE_START)
