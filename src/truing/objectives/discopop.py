"""Discovered Preference Optimization (log-ratio modulated loss)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import LogRatioObjective, Pairs, PairwiseObjective


class DiscoPOP(LogRatioObjective):
    """L = (1−m)(−log σ(z)) + m e^(−z), m = σ(z/τ), z = β[(log π/π_ref)(y⁺) − (log π/π_ref)(y⁻)]."""

    name: ClassVar[str] = "discopop"
    paper: ClassVar[str] = "arXiv:2406.08414, eq. 5"
    purpose: ClassVar[str] = "Comparisons; a loss found by search, logistic at small margins, exponential at large."
    avoid: ClassVar[str] = "Avoid where a loss must be explained, and at the paper's `tau`: it may learn the reverse."
    watch: ClassVar[str] = (
        "First line: `rewards/margins` 0 and `rewards/accuracies` 0.5, for policy and reference are one. Then both "
        "should rise, and `eval_rewards/accuracies` settle at 0.6 to 0.8."
        "\nThat is not given: at τ 0.05 the loss slopes the wrong way at its start. A pair's margin below 0.07 is "
        "drawn to −0.12, one above it outwards."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`rewards/margins` below 0 and `eval_rewards/accuracies` below 0.5: the run sits in that hollow and learns "
        "the preference backwards. A `tau` of 0.12 or more has no hollow; or take `dpo`."
    )

    beta: float = Field(default=0.05, gt=0)
    """Scale of the difference of log-ratios; 0.05 in the paper (appendix B.1)."""
    tau: float = Field(default=0.05, gt=0, lt=1)
    """Width of the turn from one loss to the other; 0.05 in the paper (appendix E)."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        z = self.beta * (pairs.chosen_logratio - pairs.rejected_logratio)
        turned = z / self.tau
        # e^(−z) alone overflows where its weight vanishes.
        return -torch.sigmoid(-turned) * F.logsigmoid(z) + torch.exp(F.logsigmoid(turned) - z)

    def start(self) -> float:
        return 0.5 * math.log(2) + 0.5
