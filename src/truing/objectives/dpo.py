"""Direct Preference Optimization."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import LogRatioObjective, Pairs, PairwiseObjective, chosen_nll

UNLEARNED = (
    "\n`rewards/chosen` falls by more than 0.1 to 0.2 nat a token (−1 to −2 at β 0.1 and 100 tokens): the chosen "
    "answers are unlearned too. `sft_weight` 0.2 to 1, or a lower `optim.lr`."
)
"""A sign of failure with the remedy that DPO and its variants have."""


class DPO(LogRatioObjective):
    """L = −(1−ε) log σ(z) − ε log σ(−z), z = β[(log π/π_ref)(y⁺) − (log π/π_ref)(y⁻)] (eq. 7; ε > 0 is cDPO)."""

    name: ClassVar[str] = "dpo"
    paper: ClassVar[str] = "arXiv:2305.18290, eq. 7; label smoothing as in its authors' cDPO note"
    purpose: ClassVar[str] = "Learn from comparisons in one stage, without a reward model or sampling."
    avoid: ClassVar[str] = "Avoid when chosen answers are systematically longer (`simpo`) or labels are noisy (`ipo`)."
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + UNLEARNED
        + "\nSamples grow longer and longer: the chosen answers are the longer ones. Take `ld_dpo`, `dpo_norm` or "
        "`simpo`."
    )

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference; 0.1 in DPO's paper (appendix B), 0.01 in Zephyr."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """ε, the share of pairs believed to be labelled the wrong way round (cDPO); 0 in DPO's paper."""
    reference_free: bool = False
    """Leave π_ref out, which DPO's paper does not. Often printed, rarely meant: it spends its gradient on long
    answers."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the per-token NLL of the chosen answer, averaged over pairs: 1 in arXiv:2404.19733, eq. 1, 0 in
    DPO's paper."""

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.reference_free else ("ref_logprobs",)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        losses = self.preference_losses(pairs)
        return losses + self.sft_weight * chosen_nll(pairs) if self.sft_weight else losses

    def preference_losses(self, pairs: Pairs) -> Tensor:
        """Return the loss of each pair without the NLL of its chosen answer, float32 [P]."""
        z = self.beta * (pairs.chosen_logratio - pairs.rejected_logratio)
        return -(1 - self.label_smoothing) * F.logsigmoid(z) - self.label_smoothing * F.logsigmoid(-z)

    def start(self) -> float | None:
        return None if self.reference_free or self.sft_weight else math.log(2)
