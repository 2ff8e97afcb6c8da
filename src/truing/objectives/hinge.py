"""Hinge loss on log-ratios (SLiC, RSO)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import LogRatioObjective, Pairs


class Hinge(LogRatioObjective):
    """L = max(0, 1 − β[(log π/π_ref)(y⁺) − (log π/π_ref)(y⁻)]): pairs with enough margin pull no more."""

    name: ClassVar[str] = "hinge"
    paper: ClassVar[str] = "arXiv:2309.06657, eq. 7 (SLiC, arXiv:2305.10425, with log-ratios)"
    purpose: ClassVar[str] = "Comparisons where pairs that are already decided should stop pulling."
    avoid: ClassVar[str] = "Avoid with few pairs: once all have their margin nothing is learned."
    watch: ClassVar[str] = (
        LogRatioObjective.watch
        + "\n`loss` falls from 1 towards 0 as pairs reach a margin of 1; `rewards/margins` slows there, for decided "
        "pairs pull no more."
    )
    failure: ClassVar[str] = (
        LogRatioObjective.failure
        + "\n`loss` and `grad_norm` near 0: all pairs are decided, and the rest of the run does nothing. Stop, or a "
        "smaller `beta`, which asks for a wider difference."
    )

    beta: float = Field(default=0.05, gt=0)
    """γ of the paper: a pair is decided at a difference of 1/β nats; 0.05 in RSO."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return F.relu(1 - self.beta * (pairs.chosen_logratio - pairs.rejected_logratio))

    def start(self) -> float:
        return 1.0
