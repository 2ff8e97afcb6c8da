"""The exact optimum of reward against KL divergence, for prompts whose answers can all be enumerated.

For a reference π₀, a reward r and a strength β, the policy that maximises E[r] - β KL(π ‖ π₀) is
π*(y|x) = π₀(y|x) exp(r(x, y) / β) / Z(x) (Ziebart 2010; equation 4 of Rafailov et al., arXiv:2305.18290). It depends on
π₀ only through the probability of each level of reward, so a prompt's answers are kept as levels with their masses.
What is not an answer of the language is one more outcome, with reward 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """How probable each reward is under the reference, for one prompt."""

    rewards: Doubles
    """Ascending and distinct: [L]."""
    masses: Doubles
    """Their probabilities, which sum to 1: [L]."""

    @classmethod
    def of(cls, rewards: Doubles, logprobs: Doubles) -> Levels:
        """Levels of a prompt's answers, [A] each; the probability that is left belongs to reward 0."""
        masses = np.exp(logprobs)
        levels, where = np.unique(np.append(rewards, 0.0), return_inverse=True)
        left = max(0.0, 1.0 - float(masses.sum()))
        weights = np.append(masses, left)
        return cls(levels, np.bincount(where, weights=weights, minlength=len(levels)).astype(np.float64))


@dataclass(frozen=True, slots=True)
class Point:
    """A policy's mean reward and its mean KL divergence from the reference, in nats a prompt."""

    reward: float
    kl: float


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """The best that any policy can reach, over prompts that count alike."""

    prompts: Sequence[Levels]

    def optimum(self, beta: float) -> Point:
        """Where the optimum for a strength of the KL term lies; 0 takes the best answers alone."""
        found = [_tilted(levels, beta) for levels in self.prompts]
        return Point(float(np.mean([p.reward for p in found])), float(np.mean([p.kl for p in found])))

    def curve(self, betas: Sequence[float]) -> list[Point]:
        """The optimum for each β."""
        return [self.optimum(beta) for beta in betas]

    def best_of(self, count: int) -> Point:
        """The policy that takes the truly best of `count` samples of the reference, ties at random."""
        found = [_best_of(levels, count) for levels in self.prompts]
        return Point(float(np.mean([p.reward for p in found])), float(np.mean([p.kl for p in found])))

    def reward_at(self, kl: float) -> float:
        """The highest mean reward within a mean KL divergence, by bisection on β."""
        if kl <= 0.0:
            return float(np.mean([levels.rewards @ levels.masses for levels in self.prompts]))
        best = self.optimum(0.0)
        if kl >= best.kl:
            return best.reward
        low, high = -12.0, 12.0  # log β
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (low, middle) if self.optimum(float(np.exp(middle))).kl < kl else (middle, high)
        return self.optimum(float(np.exp(high))).reward

    def regret(self, point: Point) -> float:
        """Reward that a policy leaves behind: what the optimum of the same KL divergence has more."""
        return self.reward_at(point.kl) - point.reward

    def objective(self, beta: float) -> float:
        """The highest value of E[r] - β KL, which is β E[log Z]."""
        point = self.optimum(beta)
        return point.reward - beta * point.kl


def _tilted(levels: Levels, beta: float) -> Point:
    seen = levels.masses > 0
    rewards, masses = levels.rewards[seen], levels.masses[seen]
    if beta == 0.0:
        return Point(float(rewards[-1]), float(-np.log(masses[-1])))
    logs = np.log(masses) + rewards / beta
    normaliser = float(np.logaddexp.reduce(logs))
    reward = float(np.exp(logs - normaliser) @ rewards)
    return Point(reward, max(0.0, reward / beta - normaliser))


def _best_of(levels: Levels, count: int) -> Point:
    seen = levels.masses > 0
    rewards, masses = levels.rewards[seen], levels.masses[seen]
    up_to = np.minimum(np.cumsum(masses), 1.0)
    best = np.diff(up_to**count, prepend=0.0)
    taken = best > 0
    kl = float(best[taken] @ np.log(best[taken] / masses[taken]))
    return Point(float(best @ rewards), max(0.0, kl))


@dataclass(frozen=True, slots=True)
class ProxyPoint:
    """A policy chosen by a proxy: what the proxy says of it, what it is worth, and its KL divergence in nats."""

    proxy: float
    reward: float
    kl: float


def best_of_by(scores: Doubles, rewards: Doubles, logprobs: Doubles, count: int) -> ProxyPoint:
    """The policy that takes the sample with the highest score of `count` of one prompt's answers, [A] each.

    An answer is taken when all samples score no higher and not all score lower; equals are taken at random. What is
    no answer of the language has no score here: it counts as worth 0 and as scored like the answers, so that it is
    taken as often as it is sampled. The proxy is that of answers.
    """
    order = np.argsort(scores, kind="stable")
    scores, rewards, masses = scores[order], rewards[order], np.exp(logprobs[order])
    answered = float(masses.sum())
    masses = masses / answered
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    up_to = np.minimum(np.cumsum(masses)[ends], 1.0)
    taken = np.diff(up_to**count, prepend=0.0)  # of each level of the score
    level = np.searchsorted(ends, np.arange(len(scores)))
    of_level = np.diff(up_to, prepend=0.0)
    factor = np.divide(taken, of_level, out=np.zeros_like(taken), where=of_level > 0)[level]
    chosen = masses * factor
    seen = chosen > 0
    kl = float(chosen[seen] @ np.log(factor[seen]))
    return ProxyPoint(float(chosen @ scores), answered * float(chosen @ rewards), answered * max(0.0, kl))
