"""Robust DPO."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import LogRatioObjective, Pairs


class RobustDPO(LogRatioObjective):
    """L = [(1−ε)(−log σ(z)) − ε(−log σ(−z))] / (1−2ε): on average over label flips of rate ε, DPO on clean labels."""

    name: ClassVar[str] = "robust"
    paper: ClassVar[str] = "arXiv:2403.00409, eq. 12"
    purpose: ClassVar[str] = "Comparisons of which a known share is labelled the wrong way round."
    avoid: ClassVar[str] = "Avoid a guessed rate: too high an ε rewards what the data rejects; `cdpo` is the mild form."
    watch: ClassVar[str] = (
        LogRatioObjective.watch + "\n`loss` may pass below 0: it averages over label flips and has no floor."
    )
    failure: ClassVar[str] = (
        LogRatioObjective.failure
        + "\n`loss` runs below 0 and `rewards/margins` into the tens: decided pairs are pushed on without end. A "
        "smaller `label_smoothing`, a lower `optim.lr`, or `cdpo`."
    )

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference; 0.1 as in DPO's paper, 0.01 in this method's (appendix B)."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """ε, the share of pairs labelled the wrong way round; 0.1 in the paper (section 6)."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        z, flipped = self.beta * (pairs.chosen_logratio - pairs.rejected_logratio), self.label_smoothing
        return (-(1 - flipped) * F.logsigmoid(z) + flipped * F.logsigmoid(-z)) / (1 - 2 * flipped)

    def start(self) -> float:
        return math.log(2)
