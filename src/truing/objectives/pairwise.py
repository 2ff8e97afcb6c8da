"""What every loss on comparisons shares: the log-probs of a pair, and the metrics people watch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from truing.core.batch import Batch, Outputs, Totals
from truing.core.reduce import Share, completion_lengths, metric, sum_by_completion
from truing.core.trees import ExampleKind
from truing.objectives.base import Objective, expect_start

NOT_THE_START = "the reference is not the policy that this stage starts from"
"""What another first loss means, for a loss that knows its value at log-ratios of zero."""

FROM_ZERO = (
    "First line: `rewards/margins` 0 and `rewards/accuracies` 0.5, for policy and reference are one. Then the margin "
    "grows slowly, and `eval_rewards/accuracies` settles at 0.6 to 0.8."
)
"""What to watch wherever rewards are measured from the reference."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Log-probs of chosen and rejected completions, summed over their supervised tokens; fields are float32 [P]."""

    chosen: Tensor
    """log π(y⁺ | x)."""
    rejected: Tensor
    """log π(y⁻ | x)."""
    chosen_logratio: Tensor
    """log π(y⁺ | x) − log π_ref(y⁺ | x); equal to `chosen` where there is no reference."""
    rejected_logratio: Tensor
    chosen_length: Tensor
    """Supervised tokens of y⁺, at least 1."""
    rejected_length: Tensor
    batch: Batch
    """Where they came from, with its columns."""
    log_squares: Tensor | None = None
    """Mean over the tokens of log Σ π² of the chosen and the rejected completion, float32 [P, 2], where asked for."""

    @classmethod
    def of(cls, outputs: Outputs, batch: Batch, ref_logprobs: Tensor | None) -> Pairs:
        """Gather the pairs of a batch; `ref_logprobs` is float32 [K] or None."""
        sums = sum_by_completion(outputs.logprobs, batch)
        # Subtract token by token before summing: the sums are in the hundreds, their difference often below one.
        ratios = sums if ref_logprobs is None else sum_by_completion(outputs.logprobs - ref_logprobs, batch)
        lengths = completion_lengths(batch)
        chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
        squares = None
        if outputs.log_squares is not None:
            squares = (sum_by_completion(outputs.log_squares, batch) / lengths)[batch.pairs]
        return cls(
            sums[chosen],
            sums[rejected],
            ratios[chosen],
            ratios[rejected],
            lengths[chosen],
            lengths[rejected],
            batch,
            squares,
        )


class PairwiseObjective(Objective):
    """A loss on comparisons: a subclass says what one pair costs, this class averages over the step's pairs."""

    watch: ClassVar[str] = (
        "`rewards/accuracies`, the share of pairs whose chosen answer has the higher reward (ties count half), and "
        "`rewards/margins` should rise, on held-out rows too: `eval_rewards/accuracies`."
    )
    failure: ClassVar[str] = (
        "`rewards/accuracies` above 0.95 with a flat `eval_rewards/accuracies`, or a rising `eval_loss`: the pairs are "
        "learned by heart. Fewer `optim.epochs`, a lower `optim.lr`."
        "\n`rewards/margins` stays where it began: a higher `optim.lr`; if that does not help, look at the pairs."
    )
    examples: ClassVar[ExampleKind] = "comparison"
    learning_rate: ClassVar[float] = 5e-7
    learning_rate_range: ClassVar[tuple[float, float]] = (5e-8, 5e-5)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("ref_logprobs",)

    def pairs(self, outputs: Outputs, batch: Batch, ref_logprobs: Tensor | None) -> Pairs:
        """Return what the loss is made of; overridden by a loss that does not sum over all tokens alike."""
        return Pairs.of(outputs, batch, ref_logprobs)

    @abstractmethod
    def pair_losses(self, pairs: Pairs) -> Tensor:
        """Return the loss of each pair, float32 [P]."""

    @abstractmethod
    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return what the loss takes as rewards of the chosen and the rejected completions, float32 [P] each."""

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        ref = batch.column("ref_logprobs") if "ref_logprobs" in self.needs else None
        pairs = self.pairs(outputs, batch, ref)
        loss = self.pair_losses(pairs).sum() / max(totals.pairs, 1)
        with torch.no_grad():
            chosen, rejected = self.implicit_rewards(pairs)
            margins = chosen - rejected
            wins = (margins > 0).float() + 0.5 * (margins == 0).float()
            metrics = {
                "rewards/chosen": metric(chosen),
                "rewards/rejected": metric(rejected),
                "rewards/margins": metric(margins),
                "rewards/accuracies": metric(wins),
                "logps/chosen": metric(pairs.chosen),
                "logps/rejected": metric(pairs.rejected),
            }
        return Share(loss, metrics)


class LogRatioObjective(PairwiseObjective):
    """A loss on comparisons whose reward is r = β log π/π_ref."""

    watch: ClassVar[str] = (
        FROM_ZERO
        + "\n`rewards/chosen` often falls a little while `rewards/rejected` falls further. Divided by β it is "
        "the change of a chosen answer's log-prob, in nats."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`rewards/chosen` falls by more than 0.1 to 0.2 nat a token (−1 to −2 at β 0.1 and 100 tokens): the chosen "
        "answers are unlearned too. A lower `optim.lr`, a higher `beta`, or `dpo` with `sft_weight`."
    )

    beta: float = Field(default=0.1, gt=0)
    """Scale of the log-ratio: strength of the pull to the reference; 0.1 as in DPO's paper."""

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.beta * pairs.chosen_logratio, self.beta * pairs.rejected_logratio

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        start = self.start()
        return None if start is None else expect_start(loss, start, NOT_THE_START)


def chosen_nll(pairs: Pairs) -> Tensor:
    """Negative log-likelihood of the chosen completion per token, float32 [P] (arXiv:2403.07691, eq. 2)."""
    return -pairs.chosen / pairs.chosen_length
