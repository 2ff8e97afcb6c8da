"""DPO under other divergences."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import FROM_ZERO, LogRatioObjective, Pairs, PairwiseObjective

LARGEST_EXPONENT = 60.0
"""Beyond this u^−α no longer has a useful float32 gradient."""


class FDPO(LogRatioObjective):
    """L = −log σ(β[f'(π/π_ref (y⁺)) − f'(π/π_ref (y⁻))]): DPO with f the generator of the divergence to the reference.

    f'(u) is log u for the reverse KL (DPO), −1/u for the forward KL, log(2u/(1+u)) for Jensen–Shannon and
    (1 − u^−α)/α for the α-divergence, which joins the first (α → 0) with the second (α = 1).
    """

    name: ClassVar[str] = "f_dpo"
    paper: ClassVar[str] = "arXiv:2309.16240, eq. 11 and table 1"
    purpose: ClassVar[str] = "Comparisons, with another balance of alignment and variety than the reverse KL's."
    avoid: ClassVar[str] = "Avoid the forward KL on long answers: 1/u of a sequence spans too many orders of magnitude."
    watch: ClassVar[str] = (
        FROM_ZERO
        + "\nRewards are β f'(u), 0 at u = 1, with a ceiling: β ln 2 under js (0.07 by default), β under forward_kl, "
        "β/α under alpha. Most of a growing margin is therefore `rewards/rejected`, falling."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`grad_norm` spikes and `rewards/chosen` lies far below 0, under forward_kl or a large `alpha`: u^−α "
        "explodes for a chosen answer that fell by some nats. `divergence` js, a lower `optim.lr`."
    )

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "js"
    """Which f; js, which lies between the reverse and the forward KL, is a moderate choice."""
    alpha: float = Field(default=0.5, gt=0, le=1)
    """α of the α-divergence, as in the paper (1 minus the coefficient of TRL); 0.5 is TRL's default."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        chosen, rejected = self.implicit_rewards(pairs)
        return -F.logsigmoid(chosen - rejected)

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.beta * self._slope(pairs.chosen_logratio), self.beta * self._slope(pairs.rejected_logratio)

    def _slope(self, log_ratio: Tensor) -> Tensor:
        """F' at u, up to a constant: float32 [P]."""
        if self.divergence == "reverse_kl":
            return log_ratio
        if self.divergence == "js":
            return math.log(2) + F.logsigmoid(log_ratio)
        alpha = 1.0 if self.divergence == "forward_kl" else self.alpha
        return -torch.expm1((-alpha * log_ratio).clamp_max(LARGEST_EXPONENT)) / alpha

    def start(self) -> float:
        return math.log(2)
