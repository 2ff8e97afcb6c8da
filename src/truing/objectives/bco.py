"""Binary Classifier Optimization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.core.batch import Batch
from truing.objectives.base import expect_start
from truing.objectives.judged import Judged, JudgedObjective, refuse_one_class
from truing.objectives.pairwise import NOT_THE_START

SHIFT = "reward_shift"
"""Column of one number, δ."""

DENSITY_RATIO = "density_ratio"
"""Column, float32 [C]: how much likelier an undesirable answer's prompt is among desirable ones; 1 for others."""

KINDS = ("rewards/chosen", "rewards/rejected")
"""Metrics whose running means are remembered."""


class BCO(JudgedObjective):
    """L = −log σ(r − δ) for a desirable answer and −log σ(δ − r) for an undesirable one, r = β log π/π_ref.

    δ is half the sum of the running means of both kinds' rewards over the steps before (eq. 9).

    Where good and bad answers have different prompts, `matching` weighs each undesirable answer by how much likelier
    its prompt is among the desirable ones, p(x | D⁺) / p(x | D⁻), so that both terms are about the same prompts
    (the first version of the paper, underlying distribution matching). The ratio is the odds of a logistic regression
    on the hidden states of the stage's start; δ is that of the rewards as they come, without weights.
    """

    name: ClassVar[str] = "bco"
    paper: ClassVar[str] = "arXiv:2404.04656, eq. 9 and 12"
    purpose: ClassVar[str] = "Answers judged one at a time, sorted as a classifier would sort them."
    avoid: ClassVar[str] = (
        "Avoid when good and bad answers have different kinds of prompts, or set `matching`: it learns the prompts."
    )
    watch: ClassVar[str] = (
        "`delta` is δ: 0 on the first line, then it follows the middle between `rewards/chosen` and "
        "`rewards/rejected`, which should come to lie above and below it. `rewards/margins` grows from 0, and "
        "`eval_rewards/margins` with it; `loss` falls from ln 2."
    )
    failure: ClassVar[str] = (
        JudgedObjective.failure
        + "\n`rewards/margins` grows within a few steps while samples stay as they were: it tells the prompts apart, "
        "not the answers. Set matching: true, give each prompt answers of both kinds, or take `kto`."
    )

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the old mean in the new one, for either kind; 0.9 is a moderate choice."""
    matching: bool = False
    """Weigh undesirable answers so that their prompts count as they would among desirable ones."""
    min_density_ratio: float = Field(default=0.5, gt=0, le=1)
    """The weight of an undesirable answer at least."""
    max_density_ratio: float = Field(default=10.0, ge=1)
    """The weight of an undesirable answer at most."""

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, DENSITY_RATIO) if self.matching else super().needs

    def for_labels(self, desirable: int, undesirable: int) -> Self:
        refuse_one_class(self.name, desirable, undesirable)
        return self

    def recall(self, memory: Mapping[str, float]) -> Mapping[str, Tensor]:
        known = [memory[kind] for kind in KINDS if kind in memory]
        return {SHIFT: torch.tensor([sum(known) / max(len(known), 1)], dtype=torch.float32)}

    def remember(self, memory: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
        kept = dict(memory)
        for kind in KINDS:
            if kind in metrics:  # a step may have one kind only
                old = kept.get(kind, metrics[kind])
                kept[kind] = self.momentum * old + (1 - self.momentum) * metrics[kind]
        return kept

    def losses(self, judged: Judged, batch: Batch) -> Tensor:
        over = self.beta * judged.logratios - batch.column(SHIFT)
        losses = -F.logsigmoid(torch.where(judged.desirable, over, -over))
        return self._weights(batch) * losses if self.matching else losses

    def figures(self, judged: Judged, batch: Batch) -> Mapping[str, Tensor]:
        shift = {"delta": batch.column(SHIFT).expand(batch.num_completions)}
        return {**shift, "weight": self._weights(batch)} if self.matching else shift

    def start(self) -> float:
        return math.log(2)

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        return expect_start(loss, self.start() * metrics.get("weight", 1.0), NOT_THE_START)

    def _weights(self, batch: Batch) -> Tensor:
        """Weights of the answers, float32 [C]; the bounds leave the 1 of desirable answers as it is."""
        return batch.column(DENSITY_RATIO).clamp(self.min_density_ratio, self.max_density_ratio)
