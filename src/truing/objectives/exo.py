"""Efficient Exact Optimization on pairs."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import LogRatioObjective, Pairs


class EXO(LogRatioObjective):
    """L = KL(q ‖ p), q = softmax of β log π/π_ref over the pair, p = (1−ε, ε): reverse KL where DPO has forward."""

    name: ClassVar[str] = "exo"
    paper: ClassVar[str] = "arXiv:2402.00856, eq. 16"
    purpose: ClassVar[str] = "Comparisons, where the policy should seek the best mode rather than cover all."
    avoid: ClassVar[str] = "Avoid for small models that must keep variety: reverse KL gives up modes."
    watch: ClassVar[str] = (
        LogRatioObjective.watch + "\nA pair's margin is drawn to ln((1−ε)/ε), 6.9 by default, where its loss is 0."
    )
    failure: ClassVar[str] = (
        LogRatioObjective.failure
        + "\n`loss` rises towards −ln ε, 6.9 by default: pairs lie far on the wrong side, where the pull fades. A "
        "lower `optim.lr`."
        "\nSamples are all alike: a larger `label_smoothing` or `beta`, under which the margin stops sooner."
    )

    beta: float = Field(default=0.1, gt=0)
    """β_π of the paper: scale of the log-ratios; 0.1 as in DPO's paper."""
    label_smoothing: float = Field(default=1e-3, gt=0, lt=0.5)
    """ε, what the target leaves to the rejected answer; 1e-3 in the paper."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        z = self.beta * (pairs.chosen_logratio - pairs.rejected_logratio)
        log_chosen, log_rejected = F.logsigmoid(z), F.logsigmoid(-z)
        chosen = log_chosen.exp() * (log_chosen - math.log1p(-self.label_smoothing))
        return chosen + log_rejected.exp() * (log_rejected - math.log(self.label_smoothing))

    def start(self) -> float:
        return -0.5 * math.log(4 * self.label_smoothing * (1 - self.label_smoothing))
