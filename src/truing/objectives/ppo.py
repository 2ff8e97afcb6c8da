"""Proximal Policy Optimization, as RLHF uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from truing.core.batch import Batch, Outputs, Totals
from truing.core.reduce import Metric, Share, metric
from truing.objectives.policy_gradient import PolicyGradient, generalised_advantages, last_tokens, ratios_of, whitened


class PPO(PolicyGradient):
    """L = −mean min(ρA, clip(ρ, 1−ε, 1+ε) A) + c · ½ mean max((V−R)², (clip(V, V_old ± ε_v) − R)²).

    ρ = π/π_old of a token; A are generalised advantages of the reward −β log π_old/π_ref at every token plus the score
    at the last, whitened over the rollout; R = A + V_old before whitening. Means are over the step's tokens.
    """

    name: ClassVar[str] = "ppo"
    paper: ClassVar[str] = "arXiv:1707.06347, eq. 7; for language models arXiv:1909.08593 and arXiv:2403.17031"
    purpose: ClassVar[str] = "RLHF: a reward model or a program says how good an answer is, the policy tries to please."
    avoid: ClassVar[str] = "Avoid when comparisons are all there is and `dpo` does the job: it has fewer parts to tune."
    watch: ClassVar[str] = (
        "`objective/scores` should rise, and `objective/rlhf_reward`, which has the price of KL taken off, with it.\n"
        "`objective/kl` starts at 0 and stays in the tens of nats a completion or below.\n"
        "`val/ratio` starts at 1 and stays near it, `policy/clipfrac` starts at 0 and stays below 0.2 or so.\n"
        "`val/explained_variance` climbs from 0 towards 1."
    )
    failure: ClassVar[str] = (
        "`objective/scores` and `objective/kl` rise together while samples get worse: the reward is being exploited; "
        "raise kl_coef, set kl_budget or kl_target.\n"
        "`val/explained_variance` below 0 for long: the critic lags; give value_warmup steps or a higher "
        "rollout.value_lr.\n"
        "`completions/ended` near 0: raise rollout.max_new_tokens or missing_end_penalty.\n"
        "`policy/clipfrac` above 0.3: a lower rate, or fewer rollout.epochs."
    )
    rollout_epochs: ClassVar[int] = 4
    criticised: ClassVar[bool] = True

    missing_end_penalty: float = Field(default=1.0, ge=0)
    """Taken off the score of a completion that the limit of new tokens cut before it ended (arXiv:2403.17031)."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """γ, how much a later reward counts; 1 as in arXiv:1909.08593."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """λ of the generalised advantages; 0.95 as in arXiv:1909.08593."""
    value_coef: float = Field(default=0.1, gt=0)
    """c; 0.1 as in arXiv:1909.08593. Policy and critic share no trained weights and AdamW is blind to scale, so what
    makes the critic learn faster is rollout.value_lr."""
    clip_range_value: float = Field(default=0.2, gt=0)
    """ε_v; 0.2 as in arXiv:1909.08593."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """What a nat of the policy's entropy at a token is worth; 0 in RLHF as usually done."""
    whiten_rewards: bool = False
    """Scale the rewards of all tokens of a rollout to deviation 1, keeping their mean."""
    whiten_advantages: bool = True
    """Scale the advantages of a rollout to mean 0 and deviation 1."""
    value_warmup: int = Field(default=0, ge=0)
    """First steps in which the critic alone learns."""

    @property
    def wants_entropy(self) -> bool:
        return self.entropy_coef > 0

    def trained(self, step: int) -> tuple[str, ...]:
        return ("value",) if step < self.value_warmup else ("policy", "value")

    def advantages(
        self, batches: Sequence[Batch], scores: Tensor, log_ratios: Sequence[Tensor], beta: float
    ) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
        rewards = [-beta * ratio for ratio in log_ratios]
        own = torch.split(scores, [batch.num_completions for batch in batches])
        rewards = [
            reward.index_add(0, last_tokens(batch), score)
            for reward, batch, score in zip(rewards, batches, own, strict=True)
        ]
        if self.whiten_rewards:
            rewards = whitened(rewards, centred=False)
        values = [batch.column("values") for batch in batches]
        advantages = [
            generalised_advantages(reward, value, batch, gamma=self.gamma, lam=self.lam)
            for reward, value, batch in zip(rewards, values, batches, strict=True)
        ]
        returns = [advantage + value for advantage, value in zip(advantages, values, strict=True)]
        figures = {
            "val/explained_variance": explained_variance(torch.cat(values), torch.cat(returns)),
            "val/mean": float(torch.cat(values).double().mean()),
        }
        if self.whiten_advantages:
            advantages = whitened(advantages)
        columns = [{"advantages": a, "returns": r} for a, r in zip(advantages, returns, strict=True)]
        return columns, figures

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        loss = torch.zeros((), device=batch.tokens.device)
        metrics: dict[str, Metric] = {}
        if len(outputs.logprobs) == batch.num_targets and (len(outputs.logprobs) or outputs.values is None):
            share = self.policy_share(outputs, batch, totals)
            loss, metrics = loss + share.loss, {**metrics, **share.metrics}
        if outputs.values is not None:
            share = self.value_share(outputs.values, batch, totals)
            loss, metrics = loss + share.loss, {**metrics, **share.metrics}
        return Share(loss, metrics)

    def policy_share(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        """The clipped objective, with the KL term and the entropy where they belong to the loss."""
        difference = outputs.logprobs - batch.column("old_logprobs")
        ratios = ratios_of(difference)
        losses, decided = self.clipped(ratios, batch.column("advantages"))
        loss = losses.sum()
        kl = self.kl_losses(outputs.logprobs, batch)
        if kl is not None:
            loss = loss + kl.sum()
        if outputs.entropy is not None:
            loss = loss - self.entropy_coef * outputs.entropy.sum()
        with torch.no_grad():
            metrics = {
                "loss/policy": metric(losses),
                "policy/approxkl": metric(0.5 * difference.square()),
                "policy/clipfrac": metric(decided.float()),
                "val/ratio": metric(ratios),
            }
            if outputs.entropy is not None:
                metrics["policy/entropy"] = metric(outputs.entropy)
        return Share(loss / max(totals.tokens, 1), metrics)

    def value_share(self, values: Tensor, batch: Batch, totals: Totals) -> Share:
        """Half the squared error of the critic, pessimistic about moves beyond the clip."""
        old, returns = batch.column("values"), batch.column("returns")
        near = old + (values - old).clamp(-self.clip_range_value, self.clip_range_value)
        free, bound = (values - returns).square(), (near - returns).square()
        losses = 0.5 * torch.maximum(free, bound)
        metrics = {"loss/value": metric(losses), "val/clipfrac": metric((bound > free).float())}
        return Share(self.value_coef * losses.sum() / max(totals.tokens, 1), metrics)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − var(returns − values) / var(returns), over float [K]; 0 where the returns do not vary."""
    wide = returns.double()
    spread = float(wide.var()) if len(wide) > 1 else 0.0
    if spread <= 1e-12 * float(wide.square().mean()):  # what float32 leaves of returns that are all the same
        return 0.0
    return 1.0 - float((wide - values.double()).var()) / spread
