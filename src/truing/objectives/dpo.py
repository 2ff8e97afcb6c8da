"""Direct Preference Optimization."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import LogRatioObjective, Pairs, chosen_nll


class DPO(LogRatioObjective):
    """L = −(1−ε) log σ(z) − ε log σ(−z), z = β[(log π/π_ref)(y⁺) − (log π/π_ref)(y⁻)] (eq. 7; ε > 0 is cDPO)."""

    name: ClassVar[str] = "dpo"
    paper: ClassVar[str] = "arXiv:2305.18290, eq. 7; label smoothing as in its authors' cDPO note"
    purpose: ClassVar[str] = "Learn from comparisons in one stage, without a reward model or sampling."
    avoid: ClassVar[str] = "Avoid when chosen answers are systematically longer (simpo) or the labels are noisy (ipo)."

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the reference; 0.1 in the paper, 0.01 in Zephyr."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """ε, the share of pairs believed to be labelled the wrong way round (cDPO)."""
    reference_free: bool = False
    """Leave π_ref out. Often printed, rarely meant: it spends its gradient on long answers."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the per-token NLL of the chosen answer, averaged over pairs (arXiv:2404.19733, eq. 1)."""

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
