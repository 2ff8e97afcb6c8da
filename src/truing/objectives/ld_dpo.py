"""Length-desensitised DPO."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from truing.core.batch import Batch, Outputs
from truing.core.reduce import sum_of_first
from truing.objectives.dpo import DPO, UNLEARNED
from truing.objectives.pairwise import FROM_ZERO, Pairs, PairwiseObjective


class LDDPO(DPO):
    """L = −log σ(β[h⁺ − h⁻]), h = Σ log π/π_ref over the first l tokens + α Σ over the rest, l the shorter's length.

    DPO in which tokens beyond the length of the pair's shorter answer count `ld_alpha` times.
    """

    name: ClassVar[str] = "ld_dpo"
    paper: ClassVar[str] = "arXiv:2409.06411, eq. 10–12"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are longer, where DPO would teach length."
    avoid: ClassVar[str] = "Avoid where what matters stands at the end of long answers: it is heard less."
    watch: ClassVar[str] = (
        FROM_ZERO + "\nRewards count tokens beyond the shorter answer's length `ld_alpha` times; `logps/chosen` and "
        "`logps/rejected` count all."
        "\nThe length of answers in samples.jsonl should stay what it was: that is what the method is for."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + UNLEARNED
        + "\nSamples still grow longer: a smaller `ld_alpha`. Long answers end badly: a larger one."
    )

    ld_alpha: float = Field(default=0.5, ge=0, le=1)
    """α, the weight of the excess: 1 is DPO; 0.4 to 0.6 did best in the paper."""

    def pairs(self, outputs: Outputs, batch: Batch, ref_logprobs: Tensor | None) -> Pairs:
        whole = super().pairs(outputs, batch, ref_logprobs)
        shorter = torch.minimum(whole.chosen_length, whole.rejected_length).long()
        ratios = outputs.logprobs if ref_logprobs is None else outputs.logprobs - ref_logprobs

        def weigh(side: int, summed: Tensor) -> Tensor:
            shared = sum_of_first(ratios, batch, batch.pairs[:, side], shorter)
            return shared + self.ld_alpha * (summed - shared)

        return replace(
            whole,
            chosen_logratio=weigh(0, whole.chosen_logratio),
            rejected_logratio=weigh(1, whole.rejected_logratio),
        )
