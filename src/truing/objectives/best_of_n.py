"""Learning from the best of several completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from truing.core.batch import Batch, Outputs, Totals
from truing.core.reduce import Share, metric
from truing.objectives.policy_gradient import Picked, Prepared, RolloutObjective, summary


class BestOfN(RolloutObjective):
    """L = −(1/N) Σ log π(y_t | x, y_<t) over the tokens of each prompt's best scored completion, N tokens in the step.

    What `truing best-of-n` chooses at answering time, learned into the policy.
    """

    name: ClassVar[str] = "best_of_n"
    paper: ClassVar[str] = "arXiv:2304.06767 (RAFT); the choice itself: arXiv:2009.01325"
    purpose: ClassVar[str] = "The simplest use of a reward: sample several, keep the best, train on it as in `sft`."
    avoid: ClassVar[str] = "Avoid where the reward has a flaw: the best of many is where it shows first."
    watch: ClassVar[str] = "`objective/scores`, of everything sampled, should rise; `objective/kl` grows slowly."
    failure: ClassVar[str] = (
        "`rewards/equal_groups` near 1: the reward does not tell completions apart.\n"
        "`objective/entropy` falls to almost nothing: fewer steps, or a larger group of prompts."
    )
    learning_rate: ClassVar[float] = 1e-5
    learning_rate_range: ClassVar[tuple[float, float]] = (1e-7, 1e-3)
    group_size: ClassVar[int] = 4
    least_group: ClassVar[int] = 2

    def pick(self, scores: Sequence[float]) -> Picked:
        return Picked((max(range(len(scores)), key=lambda n: scores[n]),))

    def prepare(self, batches: Sequence[Batch], memory: Mapping[str, float]) -> Prepared:
        return Prepared([{} for _ in batches], summary(batches), {})

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        loss = -outputs.logprobs.sum() / max(totals.tokens, 1)
        return Share(loss, {"loss/policy": metric(-outputs.logprobs)})
