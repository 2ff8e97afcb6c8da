"""Supervised fine-tuning: cross-entropy on the demonstrated tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from truing.core.batch import Batch, Outputs, Totals
from truing.core.reduce import Share, metric
from truing.core.trees import ExampleKind
from truing.objectives.base import Objective


class SFT(Objective):
    """L = −(1/N) Σ log π(y_t | x, y_<t), N the supervised tokens of the whole optimizer step."""

    name: ClassVar[str] = "sft"
    paper: ClassVar[str] = "maximum likelihood; InstructGPT arXiv:2203.02155, section 3.5"
    purpose: ClassVar[str] = "Teach a behaviour from demonstrations; the first stage of almost every chain."
    avoid: ClassVar[str] = "Avoid when the demonstrations are worse than what the model writes already."
    watch: ClassVar[str] = (
        "`loss` is the mean negative log-prob of a supervised token, in nats. A pre-trained model starts far below ln "
        "V, mostly between 1 and 3; it falls fast in the first steps, then slowly, and `eval_loss` with it."
    )
    failure: ClassVar[str] = (
        "`eval_loss` turns up while `loss` falls on: the rows are learned by heart. Fewer `optim.epochs`."
        "\nA first `loss` well above 4 from a pre-trained model: the template is not the model's, or the wrong tokens "
        "are trained. `truing train RECIPE --dry-run` shows them."
        "\n`loss` jumps and `grad_norm` is ten times its usual size: a lower `optim.lr`, a longer `optim.warmup`."
    )
    examples: ClassVar[ExampleKind] = "demonstration"
    learning_rate: ClassVar[float] = 2e-5
    learning_rate_range: ClassVar[tuple[float, float]] = (5e-7, 2e-3)

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        loss = -outputs.logprobs.sum() / max(totals.tokens, 1)
        return Share(loss, {"nll": metric(-outputs.logprobs)})

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        uniform = math.log(vocab_size)
        if loss <= 2 * uniform:
            return None
        return (
            f"the first loss is {loss:.3g}, twice as bad as guessing among {vocab_size} tokens ({uniform:.3g}): the "
            "tokenizer, the template or the weights do not belong together"
        )
