"""Group Relative Policy Optimization, with DAPO's and Dr. GRPO's choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from truing.core.batch import Batch, Outputs, Totals
from truing.core.reduce import Share, completion_lengths, metric, sum_by_completion
from truing.objectives.policy_gradient import PolicyGradient, equal_groups, group_means, ratios_of

SMALLEST = 1e-4
"""Added to a group's deviation, as TRL does."""


class GRPO(PolicyGradient):
    """L = mean of −min(ρA, clip(ρ) A) + β k3, A = (score − mean of its group) / deviation of its group.

    A group are the completions of one prompt; every token of a completion has its advantage; ρ = π/π_old of a token.
    The unbiased deviation plus 1e-4 divides. `average` says what the mean is over. k3 is not multiplied by ρ, as in the
    paper; TRL 1.16 does so by default (arXiv:2512.02556), and its token mean leaves out what `skip_unfinished` skips.
    """

    name: ClassVar[str] = "grpo"
    paper: ClassVar[str] = "arXiv:2402.03300, eq. 3 and 4; DAPO: arXiv:2503.14476; Dr. GRPO: arXiv:2503.20783"
    purpose: ClassVar[str] = "RLHF without a critic, above all where a program can check an answer."
    avoid: ClassVar[str] = "Avoid where most groups are all right or all wrong: then nothing is learned from them."
    watch: ClassVar[str] = (
        "`objective/scores` should rise.\n"
        "`rewards/equal_groups`, the share of prompts whose completions all score the same, stays well below 1.\n"
        "`val/ratio` starts at 1 and stays near it; `objective/kl` starts at 0 and grows slowly."
    )
    failure: ClassVar[str] = (
        "`rewards/equal_groups` near 1: the reward does not tell completions apart; take easier or harder prompts, a "
        "larger rollout.group_size, or a finer reward.\n"
        "`completions/length` grows without better scores: average: token or constant, scale: none.\n"
        "`objective/kl` grows fast: raise kl_coef, set kl_budget; with a reward model take kl_estimator: k1 or k2, "
        "because k3 pulls a token down by kl_coef at most, however rare it is in the reference, and does not hold a "
        "policy that has found what the model overrates."
    )
    learning_rate: ClassVar[float] = 1e-6
    group_size: ClassVar[int] = 8
    least_group: ClassVar[int] = 2

    kl_coef: float = Field(default=0.04, ge=0)
    """β; 0.04 in the paper (section 4.2); DAPO and Dr. GRPO have 0."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """k3 in the loss, as in the paper (eq. 4)."""
    scale: Literal["group", "rollout", "none"] = "group"
    """What the advantage is divided by: its group's deviation, that of all completions, or nothing (Dr. GRPO)."""
    average: Literal["completion", "token", "constant"] = "completion"
    """The mean is over completions of their mean over tokens (the paper), over tokens (DAPO), or over completions of
    their sum over tokens divided by the longest length allowed (Dr. GRPO)."""
    skip_unfinished: bool = False
    """Learn nothing from a completion that the limit of new tokens cut (DAPO); it still counts in every mean."""
    longest: int | None = Field(default=None, ge=1)
    """Tokens that `average: constant` divides by; rollout.max_new_tokens by default."""

    def for_rollouts(self, max_new_tokens: int) -> Self:
        return self if self.longest is not None else self.model_copy(update={"longest": max_new_tokens})

    def advantages(
        self, batches: Sequence[Batch], scores: Tensor, log_ratios: Sequence[Tensor], beta: float
    ) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
        worth = penalised(scores, batches, log_ratios, beta)
        groups = torch.cat([batch.column("groups") for batch in batches])
        mean, deviation, _ = group_means(worth, groups)
        relative = worth.double() - mean
        if self.scale == "group":
            relative = relative / (deviation + SMALLEST)
        elif self.scale == "rollout":
            everything = torch.zeros_like(groups)
            relative = relative / (group_means(worth, everything)[1] + SMALLEST)
        if self.skip_unfinished:
            relative = relative * torch.cat([batch.column("ended") for batch in batches])
        figures = {"rewards/equal_groups": equal_groups(scores, groups), "rewards/deviation": float(deviation.mean())}
        return by_token(relative.float(), batches), figures

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        difference = outputs.logprobs - batch.column("old_logprobs")
        ratios = ratios_of(difference)
        policy_losses, decided = self.clipped(ratios, batch.column("advantages"))
        losses = policy_losses
        kl = self.kl_losses(outputs.logprobs, batch)
        if kl is not None:
            finished = batch.column("ended")[batch.target_completion].float() if self.skip_unfinished else 1.0
            losses = losses + kl * finished
        loss = (losses * self._weights(batch, totals)).sum()
        with torch.no_grad():
            metrics = {
                "loss/policy": metric(policy_losses),
                "policy/approxkl": metric(0.5 * difference.square()),
                "policy/clipfrac": metric(decided.float()),
                "val/ratio": metric(ratios),
            }
        return Share(loss, metrics)

    def _weights(self, batch: Batch, totals: Totals) -> Tensor:
        """What a token counts in the step's loss: float32 [K]."""
        if self.average == "token":
            return torch.full_like(batch.targets, 1, dtype=torch.float32) / max(totals.tokens, 1)
        if self.average == "constant":
            return torch.full_like(batch.targets, 1, dtype=torch.float32) / (
                max(totals.completions, 1) * (self.longest or 1)
            )
        return (1.0 / (completion_lengths(batch) * max(totals.completions, 1)))[batch.target_completion]


def penalised(scores: Tensor, batches: Sequence[Batch], log_ratios: Sequence[Tensor], beta: float) -> Tensor:
    """Scores less β times the log-ratio of their whole completion: float32 [C]."""
    if not beta:
        return scores
    kl = torch.cat([sum_by_completion(ratio, batch) for ratio, batch in zip(log_ratios, batches, strict=True)])
    return scores - beta * kl


def by_token(advantages: Tensor, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    """Give every token its completion's advantage: float32 [C] of all batches → column [K] of each."""
    own = torch.split(advantages, [batch.num_completions for batch in batches])
    return [{"advantages": advantage[batch.target_completion]} for advantage, batch in zip(own, batches, strict=True)]
