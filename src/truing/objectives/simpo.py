"""Simple Preference Optimization."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import Pairs, PairwiseObjective


class SimPO(PairwiseObjective):
    """L = −log σ(β[log π(y⁺)/|y⁺| − log π(y⁻)/|y⁻|] − γ), γ = β·`gamma_beta_ratio` (eq. 6). No reference."""

    name: ClassVar[str] = "simpo"
    paper: ClassVar[str] = "arXiv:2405.14734, eq. 6"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are longer: rewards are per token and need no reference."
    avoid: ClassVar[str] = "Avoid high rates and long runs: nothing pulls the policy back to where it started."
    learning_rate: ClassVar[float] = 5e-7
    learning_rate_range: ClassVar[tuple[float, float]] = (5e-8, 2e-5)

    beta: float = Field(default=2.0, gt=0)
    """Scale of the per-token reward; 2–10 in the paper."""
    gamma_beta_ratio: float = Field(default=0.5, ge=0)
    """Target margin as a share of β; 0.5 in the authors' settings."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def pair_losses(self, pairs: Pairs) -> Tensor:
        difference = pairs.chosen / pairs.chosen_length - pairs.rejected / pairs.rejected_length
        return -F.logsigmoid(self.beta * (difference - self.gamma_beta_ratio))

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.beta * pairs.chosen / pairs.chosen_length, self.beta * pairs.rejected / pairs.rejected_length
