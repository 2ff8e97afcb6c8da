"""REINFORCE leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from truing.core.batch import Batch, Outputs, Totals
from truing.core.reduce import Share, metric, sum_by_completion
from truing.objectives.grpo import by_token, penalised
from truing.objectives.policy_gradient import PolicyGradient, equal_groups, group_means, last_tokens, ratios_of


class RLOO(PolicyGradient):
    """L = −mean over completions of min(ρA, clip(ρ) A), A = R − mean R of the prompt's other completions.

    R = score − β log π_old/π_ref of the whole completion, which is one action: ρ = π(y|x)/π_old(y|x). TRL has the same,
    without a penalty for unfinished completions.
    """

    name: ClassVar[str] = "rloo"
    paper: ClassVar[str] = "arXiv:2402.14740, eq. 7; the clip as in arXiv:1707.06347"
    purpose: ClassVar[str] = "RLHF without a critic, with several completions of a prompt as each other's baseline."
    avoid: ClassVar[str] = "Avoid for long completions: the ratio of a whole one leaves the clip soon."
    watch: ClassVar[str] = (
        "`objective/scores` should rise, and `objective/rlhf_reward` with it.\n"
        "`rewards/equal_groups` stays well below 1; `val/ratio`, of whole completions, starts at 1 and stays near it."
    )
    failure: ClassVar[str] = (
        "`policy/clipfrac` above a half: too many epochs or too high a rate.\n"
        "`objective/kl` grows with worse samples: raise kl_coef or set kl_budget."
    )
    learning_rate: ClassVar[float] = 1e-6
    group_size: ClassVar[int] = 4
    least_group: ClassVar[int] = 2
    whole: ClassVar[bool] = True

    missing_end_penalty: float = Field(default=1.0, ge=0)
    """Taken off the score of a completion that the limit of new tokens cut before it ended (arXiv:2403.17031)."""

    def advantages(
        self, batches: Sequence[Batch], scores: Tensor, log_ratios: Sequence[Tensor], beta: float
    ) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
        worth = penalised(scores, batches, log_ratios, beta)
        groups = torch.cat([batch.column("groups") for batch in batches])
        mean, _, count = group_means(worth, groups)
        # R − (sum − R)/(n − 1), the mean of the others, in terms of the mean of all.
        relative = (worth.double() - mean) * count / (count - 1).clamp_min(1)
        return by_token(relative.float(), batches), {"rewards/equal_groups": equal_groups(scores, groups)}

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        difference = outputs.logprobs - batch.column("old_logprobs")
        ratios = ratios_of(sum_by_completion(difference, batch))
        losses, decided = self.clipped(ratios, batch.column("advantages")[last_tokens(batch)])
        loss = losses.sum()
        kl = self.kl_losses(outputs.logprobs, batch)
        if kl is not None:
            loss = loss + kl.sum()
        with torch.no_grad():
            metrics = {
                "loss/policy": metric(losses),
                "policy/approxkl": metric(0.5 * difference.square()),
                "policy/clipfrac": metric(decided.float()),
                "val/ratio": metric(ratios),
            }
        return Share(loss / max(totals.completions, 1), metrics)
