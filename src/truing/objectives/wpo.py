"""Weighted Preference Optimization."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from truing.core.errors import InputError
from truing.objectives.dpo import DPO
from truing.objectives.pairwise import Pairs


class WPO(DPO):
    """DPO, each pair weighted by w(y⁺)·w(y⁻), w(y) = exp(mean over tokens of log π(yₜ) − log Σᵥ π(v)²).

    The weight says how likely the policy is to write the pair itself; no gradient passes through it (eq. 1 and 2).
    """

    name: ClassVar[str] = "wpo"
    paper: ClassVar[str] = "arXiv:2406.11827, eq. 1 and 2"
    purpose: ClassVar[str] = "Comparisons of other models' answers: those that the policy might write count more."
    avoid: ClassVar[str] = "Avoid for the model's own samples, whose weights are all alike; it only scales the rate."

    alignment: Literal["sampled", "none"] = "sampled"
    """What a token's probability is measured by: that of a token sampled in its place, or nothing (eq. 1)."""

    @property
    def wants_squares(self) -> bool:
        return self.alignment == "sampled"

    def preference_losses(self, pairs: Pairs) -> Tensor:
        weight = pairs.chosen / pairs.chosen_length + pairs.rejected / pairs.rejected_length
        if self.alignment == "sampled":
            if pairs.log_squares is None:
                raise InputError("objective wpo needs the outputs' log_squares")
            weight = weight - pairs.log_squares.sum(dim=1)
        return super().preference_losses(pairs) * weight.detach().exp()

    def start(self) -> None:
        return None
