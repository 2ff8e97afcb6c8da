"""Kahneman–Tversky Optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from truing.core.batch import Batch, Outputs
from truing.core.label_weights import automatic_weights
from truing.core.reduce import sum_by_completion
from truing.objectives.base import expect_start
from truing.objectives.judged import Judged, JudgedObjective, refuse_one_class
from truing.objectives.pairwise import NOT_THE_START

POINT = "reference_point"
"""Column of one number, z0."""


class KTO(JudgedObjective):
    """L = λ_D (1 − σ(β(h − z0))) for a desirable answer, λ_U (1 − σ(β(z0 − h))) for an undesirable, h = log π/π_ref.

    z0 = max(0, mean of log π/π_ref over *mismatched* answers, each that of another prompt) is an estimate of the KL
    divergence. It is taken over the whole step and clamped once, and no gradient passes through it (eq. 8).
    """

    name: ClassVar[str] = "kto"
    paper: ClassVar[str] = "arXiv:2402.01306, eq. 8"
    purpose: ClassVar[str] = "Answers judged one at a time, as by thumbs up and down; also where one kind is rare."
    avoid: ClassVar[str] = "Avoid when clean comparisons are at hand and complete: `dpo` uses their direction."
    watch: ClassVar[str] = (
        "`kl` is z0 in nats: 0 on the first line, then slowly growing. `rewards/chosen` and `rewards/rejected` start "
        "at 0; the first should hold or rise and the second fall, so that `rewards/margins` grows, and "
        "`eval_rewards/margins` with it."
        "\nWhere the counts of labels give weights of 1 the first `loss` is 0.5, and it stays between 0 and 1; other "
        "weights scale it."
    )
    failure: ClassVar[str] = (
        JudgedObjective.failure
        + "\nBoth rewards fall and `kl` stays at 0, where it is clamped: even the answers of other prompts grow less "
        "likely. The same remedy."
        "\n`kl` above 10: far from the start. A lower `optim.lr`, a higher `beta`."
        "\n`kl` jumps from line to line: too few answers to average over. A larger `batch.examples`."
    )
    mismatches: ClassVar[bool] = True

    desirable_weight: float | None = Field(default=None, gt=0)
    """λ_D; by default, like `undesirable_weight`, set from the counts so that λ_D n_D / (λ_U n_U) is in [1, 3/2]."""
    undesirable_weight: float | None = Field(default=None, gt=0)
    """λ_U; by default set together with `desirable_weight`."""

    def for_labels(self, desirable: int, undesirable: int) -> Self:
        refuse_one_class(self.name, desirable, undesirable)
        if self.desirable_weight is not None or self.undesirable_weight is not None:
            return self
        good, bad = automatic_weights(desirable, undesirable)
        return self.model_copy(update={"desirable_weight": good, "undesirable_weight": bad})

    def only_ahead(self, batch: Batch) -> Sequence[bool]:
        return [label < 0 for label in batch.labels.tolist()]

    def look_ahead(self, outputs: Sequence[Outputs], batches: Sequence[Batch]) -> Sequence[Mapping[str, Tensor]]:
        ratios = [
            sum_by_completion(out.logprobs - batch.column("ref_logprobs"), batch)
            for out, batch in zip(outputs, batches, strict=True)
        ]
        total = sum((part.double().sum() for part in ratios), torch.zeros((), dtype=torch.float64))
        count = sum(len(part) for part in ratios)
        point = (total / max(count, 1)).clamp_min(0).float().reshape(1)
        return [{POINT: point} for _ in batches]

    def losses(self, judged: Judged, batch: Batch) -> Tensor:
        over = self.beta * (judged.logratios - batch.column(POINT))
        good = (self.desirable_weight or 1.0) * torch.sigmoid(-over)
        bad = (self.undesirable_weight or 1.0) * torch.sigmoid(over)
        return torch.where(judged.desirable, good, bad)

    def figures(self, judged: Judged, batch: Batch) -> Mapping[str, Tensor]:
        return {"kl": batch.column(POINT).expand(batch.num_completions)}

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        weighed = {self.desirable_weight or 1.0, self.undesirable_weight or 1.0}
        if weighed != {1.0}:
            kept = metrics.get("kl", 0.0) == 0.0 or abs(metrics["kl"]) < 1e-3
            return None if kept else f"the first KL is {metrics['kl']:.6g}, but must be 0: {NOT_THE_START}"
        return expect_start(loss, 0.5, NOT_THE_START)
