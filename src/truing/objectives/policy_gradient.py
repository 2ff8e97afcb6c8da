"""What every method that learns from its own samples shares: shaped scores, KL estimators, advantages, the clip.

A rollout fills these columns before an objective sees a batch; K target tokens, C completions:

    old_logprobs  float32 [K]  of the policy that wrote the tokens, at the sampling temperature
    ref_logprobs  float32 [K]  of the reference
    values        float32 [K]  what the critic expected before each token, where the method has one
    scores        float32 [C]  the reward of each completion
    ended         bool [C]     whether the policy ended it itself
    groups        int64 [C]    which prompt of the rollout it answers

`prepare` then looks at the whole rollout and adds what the loss of a token needs, such as its advantage. That the loss
divides by counts of the optimizer step alone is what makes any split into micro-batches the same step.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from truing.core.batch import Batch
from truing.core.reduce import sum_by_completion
from truing.core.trees import ExampleKind
from truing.objectives.base import Objective

KL = "kl_coefficient"
"""What the memory calls the coefficient as the controller has it now."""

RATIO_TOLERANCE = 1e-3
"""How far the first ratio of a token may be from 1: samples get their log-probs from other kernels than updates do."""

LARGEST_LOG_RATIO = 20.0
"""Log-ratios count up to here: at 88 float32 overflows, and the gradient of what the clip leaves out would be 0 · ∞."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What a whole rollout says about its completions."""

    columns: Sequence[Mapping[str, Tensor]]
    """More columns for each of the batches."""
    metrics: Mapping[str, float]
    memory: Mapping[str, float] = field(default_factory=dict)
    """What the next rollout has to know, such as the coefficient of an adaptive KL term."""
    silent: bool = False
    """Whether every completion is as good as the others: at most the KL term moves the policy then."""


@dataclass(frozen=True, slots=True)
class Picked:
    """Which completions of a prompt are trained on, and which of those, by their new numbers, are compared."""

    keep: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    """(chosen, rejected)."""


class RolloutObjective(Objective):
    """A loss on completions that the policy wrote and something scored."""

    examples: ClassVar[ExampleKind] = "prompt"
    learning_rate: ClassVar[float] = 3e-6
    learning_rate_range: ClassVar[tuple[float, float]] = (1e-7, 1e-4)
    group_size: ClassVar[int] = 1
    """Completions of each prompt where the recipe does not say."""
    least_group: ClassVar[int] = 1
    """Completions of a prompt without which there is nothing to compare."""
    rollout_epochs: ClassVar[int] = 1
    """Passes over a rollout where the recipe does not say."""
    criticised: ClassVar[bool] = False
    """Whether a critic is trained beside the policy."""

    missing_end_penalty: float = Field(default=0.0, ge=0)
    """Taken off the score of a completion that the limit of new tokens cut before it ended."""
    reward_clip: float | None = Field(default=None, gt=0)
    """Scores are clipped to ± this; not clipped unless asked for. Normalised ones rarely need it."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("ref_logprobs",)

    def pick(self, scores: Sequence[float]) -> Picked:
        """Choose among a prompt's completions by their scores; all of them, unless a method compares or selects."""
        return Picked(tuple(range(len(scores))))

    @abstractmethod
    def prepare(self, batches: Sequence[Batch], memory: Mapping[str, float]) -> Prepared:
        """Look at a whole rollout: its batches with the columns named above, and what the last one has left behind."""

    def over_budget(self, metrics: Mapping[str, float]) -> str | None:
        """Say why training ends with the rollout that gave these figures, or return None."""
        return None

    def for_rollouts(self, max_new_tokens: int) -> Self:
        """Return the objective with what it takes from the recipe's rollout section."""
        return self

    @property
    def once(self) -> bool:
        """Whether a rollout may serve one step only."""
        return False

    def shaped(self, scores: Tensor, ended: Tensor) -> Tensor:
        """Scores after the penalty and the clip: float [C], bool [C] → float [C]."""
        scores = scores - self.missing_end_penalty * (~ended).float()
        return scores if self.reward_clip is None else scores.clamp(-self.reward_clip, self.reward_clip)


class PolicyGradient(RolloutObjective):
    """A rollout method with a KL term: in the reward as k1, or in the loss as k2 or k3."""

    whole: ClassVar[bool] = False
    """Whether a completion is one action, with one ratio."""

    kl_coef: float = Field(default=0.05, ge=0)
    """β, what a nat of KL divergence from the reference costs; 0.05 as in arXiv:2403.17031."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """k1, log π/π_ref, is taken off the reward; k2, half its square, and k3, π_ref/π − 1 + log π/π_ref, are added to
    the loss. These are different algorithms."""
    kl_target: float | None = Field(default=None, gt=0)
    """Nats a completion that an adaptive coefficient steers to (arXiv:1909.08593, section 2.2)."""
    kl_horizon: float = Field(default=10_000.0, gt=0)
    """Completions over which it steers; a rollout of more than these counts as these. 10,000 as in arXiv:1909.08593."""
    kl_budget: float | None = Field(default=None, gt=0)
    """Nats a completion at which training ends, with what it has got; none unless asked for."""
    clip_range: float = Field(default=0.2, gt=0)
    """ε: the ratio π/π_old counts within 1 ± ε; 0.2 as in arXiv:1707.06347."""
    clip_range_high: float | None = Field(default=None, gt=0)
    """Another ε above 1, as DAPO has it: 0.28 there (arXiv:2503.14476, section 3.1)."""

    @model_validator(mode="after")
    def _adaptive_needs_a_start(self) -> PolicyGradient:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target multiplies kl_coef, which is 0; give kl_coef a small start such as 0.05")
        return self

    def coefficient(self, memory: Mapping[str, float]) -> float:
        """β now."""
        return memory.get(KL, self.kl_coef)

    def prepare(self, batches: Sequence[Batch], memory: Mapping[str, float]) -> Prepared:
        beta = self.coefficient(memory)
        kls = [log_ratio(batch) for batch in batches]
        scores = torch.cat([self.shaped(batch.column("scores"), batch.column("ended")) for batch in batches])
        columns, more = self.advantages(batches, scores, kls, beta if self.kl_estimator == "k1" else 0.0)
        figures = summary(batches)
        mean_kl, mean_score = figures["objective/kl"], float(scores.double().mean())
        metrics = {
            **figures,
            "objective/scores": mean_score,
            "objective/rlhf_reward": mean_score - beta * mean_kl,
            "objective/kl_coef": beta,
            **more,
        }
        coefs = torch.full((1,), beta)
        same = more.get("rewards/equal_groups") == 1.0 or not any(bool(own["advantages"].any()) for own in columns)
        return Prepared(
            [{**own, "kl_coef": coefs.to(batch.tokens.device)} for own, batch in zip(columns, batches, strict=True)],
            metrics,
            {**memory, KL: self._steered(beta, mean_kl, len(scores))},
            same,
        )

    @abstractmethod
    def advantages(
        self, batches: Sequence[Batch], scores: Tensor, log_ratios: Sequence[Tensor], beta: float
    ) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
        """Return the column `advantages`, float32 [K], and others for each batch, and figures of the rollout.

        `scores` are the shaped ones of all batches, float32 [C]; `beta` times a token's log-ratio, float32 [K], is to
        be taken off its reward (0 where the KL term is in the loss).
        """

    def over_budget(self, metrics: Mapping[str, float]) -> str | None:
        kl = metrics.get("objective/kl", 0.0)
        if self.kl_budget is None or kl <= self.kl_budget:
            return None
        return f"the policy is {kl:.2f} nats a completion from the reference, over kl_budget {self.kl_budget:g}"

    def kl_losses(self, logprobs: Tensor, batch: Batch) -> Tensor | None:
        """β times the KL estimate of each token, float32 [K], where it belongs to the loss."""
        if self.kl_estimator == "k1":
            return None
        difference = logprobs - batch.column("ref_logprobs")
        if self.kl_estimator == "k2":
            return batch.column("kl_coef") * 0.5 * difference.square()
        near = difference.clamp(min=-LARGEST_LOG_RATIO)
        return batch.column("kl_coef") * (torch.expm1(-near) + near)

    def clipped(self, ratios: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Return −min(ρA, clip(ρ)A) and whether the clip decided: float32 and bool of the shape of `ratios`."""
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        free = -ratios * advantages
        bound = -ratios.clamp(1 - self.clip_range, 1 + high) * advantages
        return torch.maximum(free, bound), bound > free

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        ratio = metrics.get("val/ratio")
        length = max(1.0, metrics.get("completions/length", 1.0))
        if ratio is not None and abs(ratio - 1) > RATIO_TOLERANCE * (length if self.whole else 1.0):
            return f"the first ratio is {ratio:.6g}, but must be 1: the policy does not agree with its own samples"
        if metrics.get("policy/clipfrac", 0.0) > 0:
            return "the clip acts before the first update: the policy does not agree with its own samples"
        kl = metrics.get("objective/kl", 0.0)
        if abs(kl) > RATIO_TOLERANCE * length:
            return (
                f"the first KL is {kl:.6g}, but must be 0: the reference is not the policy that this stage starts from"
            )
        return None

    def _steered(self, beta: float, kl: float, completions: int) -> float:
        if self.kl_target is None:
            return beta
        error = max(-0.2, min(0.2, kl / self.kl_target - 1))
        # More completions than the horizon must not turn the coefficient's sign.
        return beta * (1 + error * min(1.0, completions / self.kl_horizon))


def ratios_of(differences: Tensor) -> Tensor:
    """π/π_old from log π − log π_old: float32 of the same shape, at most e²⁰ and without gradient there."""
    return differences.clamp(max=LARGEST_LOG_RATIO).exp()


def summary(batches: Sequence[Batch]) -> dict[str, float]:
    """Figures of a rollout's completions: their KL from the reference and entropy in nats a completion, and lengths."""
    kl, entropy = (
        torch.cat([sum_by_completion(of(batch), batch) for batch in batches]).double().mean()
        for of in (log_ratio, lambda batch: -batch.column("old_logprobs"))
    )
    return {"objective/kl": float(kl), "objective/entropy": float(entropy)}


def log_ratio(batch: Batch) -> Tensor:
    """Log π_old − log π_ref of each target token: float32 [K]."""
    return batch.column("old_logprobs") - batch.column("ref_logprobs")


def whitened(parts: Sequence[Tensor], *, centred: bool = True) -> list[Tensor]:
    """Scale numbers of a whole rollout to deviation 1, and around 0 unless their mean is to be kept: float32 [K] each.

    The deviation is the unbiased one, as in arXiv:2403.17031; equal numbers become 0.
    """
    whole = torch.cat(list(parts)).double()
    mean = whole.mean()
    deviation = whole.std() if len(whole) > 1 else whole.new_zeros(())
    # Rounding of equal numbers must not be blown up to deviation 1.
    scale = 1.0 / float(deviation) if float(deviation) > 1e-6 * max(1.0, abs(float(mean))) else 0.0
    kept = 0.0 if centred else float(mean)
    return [((part.double() - mean) * scale + kept).float() for part in parts]


def generalised_advantages(
    rewards: Tensor,  # float32 [K]
    values: Tensor,  # float32 [K]
    batch: Batch,
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    """A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = R_t + γ V_{t+1} − V_t, V = 0 behind the last token: float32 [K].

    arXiv:1506.02438, eq. 16. Computed in float64, all completions at once.
    """
    grid = _Grid(batch)
    worth, expected = grid.of(rewards), grid.of(values)  # float64 [C, L], zeros behind the ends
    following = torch.cat([expected[:, 1:], expected.new_zeros(len(expected), 1)], dim=1)
    deltas = worth + gamma * following - expected
    out = torch.zeros_like(deltas)
    running = deltas.new_zeros(len(deltas))
    for t in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, t] + gamma * lam * running
        out[:, t] = running
    return grid.back(out)


class _Grid:
    """Target tokens as rows of completions, [K] ↔ [C, L]."""

    def __init__(self, batch: Batch) -> None:
        counts = torch.tensor(batch.target_counts, dtype=torch.int64, device=batch.targets.device)
        first = counts.cumsum(0) - counts
        self._row = batch.target_completion
        self._place = torch.arange(batch.num_targets, device=counts.device) - first[self._row]
        self._shape = (len(counts), max(batch.target_counts, default=0))

    def of(self, x: Tensor) -> Tensor:
        out = torch.zeros(self._shape, dtype=torch.float64, device=x.device)
        out[self._row, self._place] = x.double()
        return out

    def back(self, x: Tensor) -> Tensor:
        return x[self._row, self._place].float()


def last_tokens(batch: Batch) -> Tensor:
    """Index into K of each completion's last target token: int64 [C]; every sampled completion has one."""
    counts = torch.tensor(batch.target_counts, dtype=torch.int64, device=batch.targets.device)
    return counts.cumsum(0) - 1


def group_means(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased deviation (0 for a group of one) and size of each number's group: float64 [C] each."""
    _, index = torch.unique(groups, return_inverse=True)
    wide = values.double()
    count = torch.bincount(index).double()
    mean = torch.zeros_like(count).index_add(0, index, wide) / count
    square = torch.zeros_like(count).index_add(0, index, (wide - mean[index]).square())
    deviation = (square / (count - 1).clamp_min(1)).sqrt()
    return mean[index], deviation[index], count[index]


def equal_groups(values: Tensor, groups: Tensor) -> float:
    """Share of groups whose numbers are all the same."""
    _, deviation, count = group_means(values, groups)
    same = deviation <= 1e-8 * values.double().abs().clamp_min(1.0)
    return float((same.double() / count).sum() / (1 / count).sum()) if len(values) else math.nan
