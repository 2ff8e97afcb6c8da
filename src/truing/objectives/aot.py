"""Alignment via Optimal Transport."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.core.batch import Batch, Outputs
from truing.objectives.pairwise import FROM_ZERO, LogRatioObjective, Pairs

PARTNERS = "aot_partners"
"""Column, float32 [P] or [P, 2]: what stands at the same rank on the other side."""


class AOT(LogRatioObjective):
    """L = mean over ranks k of f(β(u₍ₖ₎ − v₍ₖ₎)): u and v are the margins log(y⁺) − log(y⁻) under π and under π_ref.

    Both are sorted over the whole step, so that the policy's margins are to dominate the reference's as distributions.
    f(z) = −(1−ε) log σ(z) − ε log σ(−z).
    """

    name: ClassVar[str] = "aot"
    paper: ClassVar[str] = "arXiv:2406.05882, paired"
    purpose: ClassVar[str] = "Comparisons, where answers should be better as a distribution rather than pair by pair."
    avoid: ClassVar[str] = "Avoid small steps: a distribution of a few pairs says little."
    watch: ClassVar[str] = (
        FROM_ZERO
        + "\n`rewards/margins` is also the mean difference over ranks, which AOT moves; `rewards/accuracies` compares "
        "pair by pair, which it does not, and may lag."
    )
    failure: ClassVar[str] = (
        LogRatioObjective.failure
        + "\n`loss` jumps from line to line: a few pairs are no distribution. `batch.examples` 64 or more (8 by "
        "default)."
    )

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """ε, as in cDPO; the paper has none."""

    def look_ahead(self, outputs: Sequence[Outputs], batches: Sequence[Batch]) -> Sequence[Mapping[str, Tensor]]:
        found = [
            Pairs.of(out, batch, batch.column("ref_logprobs")) for out, batch in zip(outputs, batches, strict=True)
        ]
        partners = self._partners(
            torch.cat([pairs.chosen for pairs in found]),
            torch.cat([pairs.rejected for pairs in found]),
            torch.cat([pairs.chosen_logratio for pairs in found]),
            torch.cat([pairs.rejected_logratio for pairs in found]),
        )
        return [{PARTNERS: part} for part in torch.split(partners, [batch.num_pairs for batch in batches])]

    def _partners(self, chosen: Tensor, rejected: Tensor, chosen_ratio: Tensor, rejected_ratio: Tensor) -> Tensor:
        margins = chosen - rejected
        return at_same_rank(margins, margins - (chosen_ratio - rejected_ratio))

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return self.smoothed(pairs.chosen - pairs.rejected - pairs.batch.column(PARTNERS))

    def smoothed(self, difference: Tensor) -> Tensor:
        """f(β · difference), float32 [P]."""
        z, wrong = self.beta * difference, self.label_smoothing
        return -(1 - wrong) * F.logsigmoid(z) - wrong * F.logsigmoid(-z)

    def start(self) -> float:
        return math.log(2)


class UnpairedAOT(AOT):
    """L = mean over ranks k of f(β(h⁺₍ₖ₎ − h⁻₍ₖ₎)), h = log π/π_ref, chosen and rejected sorted over the step apart.

    Each side is differentiated against the other's value of the same rank, which is the gradient through the sort.
    """

    name: ClassVar[str] = "aot_unpaired"
    paper: ClassVar[str] = "arXiv:2406.05882, unpaired"
    purpose: ClassVar[str] = "Good and bad answers of which nobody says which answer beats which."

    def _partners(self, chosen: Tensor, rejected: Tensor, chosen_ratio: Tensor, rejected_ratio: Tensor) -> Tensor:
        return torch.stack([at_same_rank(chosen_ratio, rejected_ratio), at_same_rank(rejected_ratio, chosen_ratio)], 1)

    def pair_losses(self, pairs: Pairs) -> Tensor:
        partners = pairs.batch.column(PARTNERS)
        chosen = self.smoothed(pairs.chosen_logratio - partners[:, 0])
        rejected = self.smoothed(partners[:, 1] - pairs.rejected_logratio)
        both = chosen + rejected
        # Every rank appears twice, once from either side: its value counts half, its two gradients count whole.
        return both - 0.5 * both.detach()


def at_same_rank(values: Tensor, others: Tensor) -> Tensor:
    """For each value the element of `others` that has the same rank there: float [N], [N] → [N]."""
    ranks = values.argsort(stable=True).argsort()
    return others.sort().values[ranks]
