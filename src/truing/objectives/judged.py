"""What losses on single judged answers share: their log-ratios, and the metrics people watch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from truing.core.batch import Batch, Outputs, Totals
from truing.core.errors import DataError
from truing.core.reduce import Share, metric, sum_by_completion
from truing.core.trees import ExampleKind
from truing.objectives.base import Objective


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The judged completions of a batch."""

    logprobs: Tensor  # float32 [C], log π(y | x)
    logratios: Tensor  # float32 [C], log π(y | x) − log π_ref(y | x)
    desirable: Tensor  # bool [C]
    judged: Tensor  # bool [C], false for completions without a label

    @classmethod
    def of(cls, outputs: Outputs, batch: Batch) -> Judged:
        """Sum the batch's log-probs by completion."""
        ratios = sum_by_completion(outputs.logprobs - batch.column("ref_logprobs"), batch)
        return cls(sum_by_completion(outputs.logprobs, batch), ratios, batch.labels == 1, batch.labels >= 0)


class JudgedObjective(Objective):
    """A loss on answers that are desirable or not: a subclass says what each costs, this averages over the step."""

    watch: ClassVar[str] = (
        "`rewards/chosen` and `rewards/rejected`, the mean rewards of desirable and undesirable answers, start at 0; "
        "`rewards/margins`, their difference, should grow, and `eval_rewards/margins` with it."
    )
    failure: ClassVar[str] = (
        "`rewards/margins` grows while `eval_rewards/margins` stands still, or `eval_loss` rises: the answers are "
        "learned by heart. Fewer `optim.epochs`, a lower `optim.lr`."
        "\n`rewards/chosen` falls with `rewards/rejected`: good answers are unlearned with the bad. A lower "
        "`optim.lr`, a higher `beta`; look whether the labels are the right way round."
    )
    examples: ClassVar[ExampleKind] = "judgement"
    learning_rate: ClassVar[float] = 5e-7
    learning_rate_range: ClassVar[tuple[float, float]] = (5e-8, 5e-5)

    beta: float = Field(default=0.1, gt=0)
    """Scale of the implicit reward β log π/π_ref; 0.1 in KTO's paper, 0.01 in BCO's."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("ref_logprobs",)

    @abstractmethod
    def losses(self, judged: Judged, batch: Batch) -> Tensor:
        """Return the weighted loss of each completion, float32 [C]; those without a label are left out later."""

    def figures(self, judged: Judged, batch: Batch) -> Mapping[str, Tensor]:
        """Return more metrics, to be averaged over judged completions: float [C] each."""
        return {}

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        found = Judged.of(outputs, batch)
        loss = self.losses(found, batch)[found.judged].sum() / max(totals.labelled, 1)
        with torch.no_grad():
            good, bad = found.desirable & found.judged, ~found.desirable & found.judged
            rewards = self.beta * found.logratios
            metrics = {
                "rewards/chosen": metric(rewards[good]),
                "rewards/rejected": metric(rewards[bad]),
                "logps/chosen": metric(found.logprobs[good]),
                "logps/rejected": metric(found.logprobs[bad]),
                **{name: metric(values[found.judged]) for name, values in self.figures(found, batch).items()},
            }
        return Share(loss, metrics)

    def derived(self, metrics: Mapping[str, float]) -> dict[str, float]:
        if not {"rewards/chosen", "rewards/rejected"} <= metrics.keys():
            return {}
        return {"rewards/margins": metrics["rewards/chosen"] - metrics["rewards/rejected"]}


def refuse_one_class(name: str, desirable: int, undesirable: int) -> None:
    """Raise DataError unless both kinds of answers are there."""
    if desirable and undesirable:
        return
    kind, count = ("desirable", desirable) if desirable else ("undesirable", undesirable)
    raise DataError(
        f"all {count:,} answers are labelled {kind}; objective {name} needs both kinds. "
        + ("To learn from good answers alone, use objective: sft" if desirable else "Add answers that are good")
    )
