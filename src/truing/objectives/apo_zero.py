"""Anchored Preference Optimization, zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from truing.objectives.base import expect_start
from truing.objectives.pairwise import NOT_THE_START, Pairs, PairwiseObjective


class APOZero(PairwiseObjective):
    """L = 1 − σ(r⁺) + σ(r⁻), r = β log π/π_ref: chosen up and rejected down, each against the reference itself."""

    name: ClassVar[str] = "apo_zero"
    paper: ClassVar[str] = "arXiv:2408.06266, eq. 7, plus 1"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are better than what the model writes by itself."
    avoid: ClassVar[str] = "Avoid when the chosen answers are worse than the model's own (apo_down)."

    beta: float = Field(default=0.1, gt=0)
    """Scale of the implicit reward."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.beta * pairs.chosen_logratio, self.beta * pairs.rejected_logratio

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        return expect_start(loss, 1.0, NOT_THE_START)
