"""REINFORCE with a KL term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from truing.core.batch import Batch, Outputs, Totals
from truing.core.reduce import Share, metric, sum_by_completion
from truing.objectives.grpo import by_token, penalised
from truing.objectives.policy_gradient import PolicyGradient, last_tokens, ratios_of, whitened


class Reinforce(PolicyGradient):
    """L = −mean over completions of A log π(y|x), A = R − mean R of the rollout, R = score − β log π_old/π_ref.

    Each rollout serves one step: without a ratio, a second step would not know that the policy has moved.
    """

    name: ClassVar[str] = "reinforce"
    paper: ClassVar[str] = "Williams 1992, with the rollout's mean as baseline; whitening as in arXiv:2501.03262"
    purpose: ClassVar[str] = "The plainest policy gradient: to compare with, and to understand the others by."
    avoid: ClassVar[str] = "Avoid for small rollouts: its one baseline for all prompts leaves much noise (`rloo`)."
    watch: ClassVar[str] = "`objective/scores` should rise, `objective/kl` grow slowly."
    failure: ClassVar[str] = "`grad_norm` jumping from step to step: larger rollouts (batch.examples), or `rloo`."
    learning_rate: ClassVar[float] = 1e-6
    group_size: ClassVar[int] = 4

    missing_end_penalty: float = Field(default=1.0, ge=0)
    """Taken off the score of a completion that the limit of new tokens cut before it ended (arXiv:2403.17031)."""
    whiten_advantages: bool = False
    """Scale the advantages of a rollout to deviation 1."""

    def advantages(
        self, batches: Sequence[Batch], scores: Tensor, log_ratios: Sequence[Tensor], beta: float
    ) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
        worth = penalised(scores, batches, log_ratios, beta).double()
        relative = (worth - worth.mean()).float()
        if self.whiten_advantages:
            (relative,) = whitened([relative])
        return by_token(relative, batches), {}

    @property
    def once(self) -> bool:
        return True

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        whole = sum_by_completion(outputs.logprobs, batch)
        losses = -batch.column("advantages")[last_tokens(batch)] * whole
        loss = losses.sum()
        kl = self.kl_losses(outputs.logprobs, batch)
        if kl is not None:
            loss = loss + kl.sum()
        with torch.no_grad():
            ratios = ratios_of(outputs.logprobs - batch.column("old_logprobs"))
            metrics = {"loss/policy": metric(losses), "val/ratio": metric(ratios)}
        return Share(loss / max(totals.completions, 1), metrics)
