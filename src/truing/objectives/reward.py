"""Reward models from comparisons (Bradley–Terry)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from truing.core.batch import Batch, Outputs, Totals
from truing.core.errors import InputError
from truing.core.reduce import Share, metric
from truing.core.trees import ExampleKind
from truing.objectives.base import Objective


class Reward(Objective):
    """L = −log σ(r⁺ − r⁻ − m) + c (r⁺ + r⁻)², r the score at a completion's last token, m its rating margin.

    The first term is the likelihood of the comparison (Bradley and Terry 1952); the second keeps scores around zero,
    which the first leaves open (arXiv:2312.09244). The mean is over the step's pairs; all pairs of one prompt are in
    one step.
    """

    name: ClassVar[str] = "reward"
    paper: ClassVar[str] = "arXiv:2203.02155 (InstructGPT), eq. 1; margin: arXiv:2307.09288 (Llama 2), eq. 2"
    purpose: ClassVar[str] = "A model that scores answers: for RLHF, for best-of-n, for sorting data."
    avoid: ClassVar[str] = "Avoid more than a pass or two over the comparisons: it over-fits them first."
    watch: ClassVar[str] = (
        "A new head scores 0: the first line has `accuracy` 0.5 and, without rating margins, a `loss` of ln 2. "
        "`eval_accuracy` settles at 0.65 to 0.75 where people judge, higher where a rule does; `margin`, the mean "
        "difference of the scores, grows with it."
        "\n`scores/chosen` and `scores/rejected` may drift together, which changes no ranking; `centering` 0.01 holds "
        "them near 0."
    )
    failure: ClassVar[str] = (
        "`accuracy` above 0.9 with a flat `eval_accuracy`, or a rising `eval_loss`: over-fitted. One pass, a lower "
        "`optim.lr`."
        "\n`eval_accuracy` below 0.6: too few comparisons (about 2,000 are needed), or labels that contradict each "
        "other."
        "\n`eval_accuracy` no better than the share in which the longer answer is chosen, which `truing score` prints "
        "beside it: length may be all it knows. Balance the lengths in the data."
    )
    examples: ClassVar[ExampleKind] = "comparison"
    reads: ClassVar[Literal["logprobs", "scores"]] = "scores"
    groups: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 1e-5
    learning_rate_range: ClassVar[tuple[float, float]] = (1e-6, 1e-4)

    margin: float = Field(default=1.0, ge=0)
    """How much the rows' rating differences count, 1 as they are written (Llama 2); rows without one have margin 0."""
    centering: float = Field(default=0.0, ge=0)
    """c; 0.01 in its paper. 0, as in InstructGPT, leaves scores where they fall."""

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        if outputs.scores is None:
            raise InputError("objective reward needs a model with a score head")
        chosen, rejected = outputs.scores[batch.pairs[:, 0]], outputs.scores[batch.pairs[:, 1]]
        losses = -F.logsigmoid(chosen - rejected - self.margin * batch.margins)
        if self.centering:
            losses = losses + self.centering * (chosen + rejected).square()
        with torch.no_grad():
            difference = chosen - rejected
            metrics = {
                "accuracy": metric((difference > 0).float() + 0.5 * (difference == 0).float()),
                "margin": metric(difference),
                "scores/chosen": metric(chosen),
                "scores/rejected": metric(rejected),
            }
        return Share(losses.sum() / max(totals.pairs, 1), metrics)

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        silent = metrics["scores/chosen"] == metrics["scores/rejected"] == 0.0 and metrics["margin"] == 0.0
        if silent and not self.margin and abs(loss - math.log(2)) > 1e-4:
            return f"all scores are 0, but the first loss is {loss:.6g} and not ln 2"
        return None
