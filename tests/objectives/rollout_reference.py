"""Rollout losses in float64, a completion at a time with plain loops, independently of the package.

`o` is always the settings of an objective, by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Written:
    """One completion of a rollout: a number for each of its n tokens, float64 [n], and its score."""

    policy: Numbers
    old: Numbers
    ref: Numbers
    critic: Numbers
    """What the critic says now."""
    values: Numbers
    """What it said when the completion was written."""
    entropy: Numbers
    score: float
    ended: bool
    group: int


@dataclass(frozen=True)
class Learned:
    """What a rollout says of each token of each completion."""

    advantages: list[list[float]]
    returns: list[list[float]]


def shaped(one: Written, o: Settings) -> float:
    score = one.score if one.ended else one.score - o["missing_end_penalty"]
    return score if o["reward_clip"] is None else max(-o["reward_clip"], min(o["reward_clip"], score))


def kl(one: Written) -> float:
    """Nats of the whole completion, estimated by k1."""
    return math.fsum(a - b for a, b in zip(one.old, one.ref, strict=True))


def generalised_advantages(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """arXiv:1506.02438, eq. 16, term by term."""
    n = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [math.fsum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


def whitened(rows: list[list[float]], *, centred: bool = True) -> list[list[float]]:
    numbers = [x for row in rows for x in row]
    mean = math.fsum(numbers) / len(numbers)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))
    return [[(x - mean) / deviation + (0.0 if centred else mean) for x in row] for row in rows]


def ppo(rollout: Sequence[Written], o: Settings) -> Learned:
    beta = o["kl_coef"] if o["kl_estimator"] == "k1" else 0.0
    rewards = []
    for one in rollout:
        row = [-beta * (a - b) for a, b in zip(one.old, one.ref, strict=True)]
        row[-1] += shaped(one, o)
        rewards.append(row)
    if o["whiten_rewards"]:
        rewards = whitened(rewards, centred=False)
    advantages = [
        generalised_advantages(row, list(one.values), o["gamma"], o["lam"])
        for row, one in zip(rewards, rollout, strict=True)
    ]
    returns = [
        [a + v for a, v in zip(row, one.values, strict=True)] for row, one in zip(advantages, rollout, strict=True)
    ]
    return Learned(whitened(advantages) if o["whiten_advantages"] else advantages, returns)


def worths(rollout: Sequence[Written], o: Settings) -> list[float]:
    beta = o["kl_coef"] if o["kl_estimator"] == "k1" else 0.0
    return [shaped(one, o) - beta * kl(one) for one in rollout]


def spread(rollout: Sequence[Written], numbers: Sequence[float]) -> Learned:
    """The same advantage for every token of a completion."""
    return Learned([[x] * len(one.old) for x, one in zip(numbers, rollout, strict=True)], [])


def deviation(numbers: Sequence[float]) -> float:
    mean = math.fsum(numbers) / len(numbers)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))


def grpo(rollout: Sequence[Written], o: Settings) -> Learned:
    worth = worths(rollout, o)
    found = []
    for one, own in zip(rollout, worth, strict=True):
        group = [w for other, w in zip(rollout, worth, strict=True) if other.group == one.group]
        advantage = own - math.fsum(group) / len(group)
        if o["scale"] == "group":
            advantage /= deviation(group) + 1e-4
        if o["scale"] == "rollout":
            advantage /= deviation(worth) + 1e-4
        found.append(0.0 if o["skip_unfinished"] and not one.ended else advantage)
    return spread(rollout, found)


def rloo(rollout: Sequence[Written], o: Settings) -> Learned:
    worth = worths(rollout, o)
    found = []
    for index, one in enumerate(rollout):
        others = [w for i, w in enumerate(worth) if i != index and rollout[i].group == one.group]
        found.append(worth[index] - math.fsum(others) / len(others))
    return spread(rollout, found)


def reinforce(rollout: Sequence[Written], o: Settings) -> Learned:
    worth = worths(rollout, o)
    mean = math.fsum(worth) / len(worth)
    found = [w - mean for w in worth]
    if o["whiten_advantages"]:
        found = [w / deviation(found) for w in found]
    return spread(rollout, found)


def clipped(ratio: float, advantage: float, o: Settings) -> float:
    low = 1 - o["clip_range"]
    high = 1 + (o["clip_range"] if o["clip_range_high"] is None else o["clip_range_high"])
    return -min(ratio * advantage, max(low, min(high, ratio)) * advantage)


def acts(ratio: float, advantage: float, o: Settings) -> int:
    """−1 where the lower bound decides, 1 where the upper one does, else 0."""
    high = 1 + (o["clip_range"] if o["clip_range_high"] is None else o["clip_range_high"])
    if ratio < 1 - o["clip_range"] and advantage < 0:
        return -1
    return int(ratio > high and advantage > 0)


def kl_loss(p: float, q: float, o: Settings) -> float:
    if o["kl_estimator"] == "k2":
        return float(o["kl_coef"]) * (p - q) ** 2 / 2
    if o["kl_estimator"] == "k3":
        return float(o["kl_coef"]) * (math.exp(q - p) - 1 - (q - p))
    return 0.0


def value_loss(now: float, before: float, target: float, o: Settings) -> float:
    near = max(before - o["clip_range_value"], min(before + o["clip_range_value"], now))
    return 0.5 * max((now - target) ** 2, (near - target) ** 2)


def ppo_loss(step: Sequence[Written], learned: Learned, o: Settings) -> float:
    tokens = sum(len(one.old) for one in step)
    total = 0.0
    for one, advantages, returns in zip(step, learned.advantages, learned.returns, strict=True):
        for t, advantage in enumerate(advantages):
            total += clipped(math.exp(one.policy[t] - one.old[t]), advantage, o)
            total += kl_loss(one.policy[t], one.ref[t], o) - o["entropy_coef"] * one.entropy[t]
            total += o["value_coef"] * value_loss(one.critic[t], one.values[t], returns[t], o)
    return total / tokens


def grpo_loss(step: Sequence[Written], learned: Learned, o: Settings) -> float:
    tokens = sum(len(one.old) for one in step)
    total = 0.0
    for one, advantages in zip(step, learned.advantages, strict=True):
        own = 0.0
        for t, advantage in enumerate(advantages):
            own += clipped(math.exp(one.policy[t] - one.old[t]), advantage, o)
            if one.ended or not o["skip_unfinished"]:
                own += kl_loss(one.policy[t], one.ref[t], o)
        if o["average"] == "completion":
            total += own / len(one.old) / len(step)
        elif o["average"] == "token":
            total += own / tokens
        else:
            total += own / o["longest"] / len(step)
    return total


def rloo_loss(step: Sequence[Written], learned: Learned, o: Settings) -> float:
    total = 0.0
    for one, advantages in zip(step, learned.advantages, strict=True):
        ratio = math.exp(math.fsum(one.policy) - math.fsum(one.old))
        total += clipped(ratio, advantages[0], o)
        total += math.fsum(kl_loss(p, q, o) for p, q in zip(one.policy, one.ref, strict=True))
    return total / len(step)


def reinforce_loss(step: Sequence[Written], learned: Learned, o: Settings) -> float:
    total = 0.0
    for one, advantages in zip(step, learned.advantages, strict=True):
        total -= advantages[0] * math.fsum(one.policy)
        total += math.fsum(kl_loss(p, q, o) for p, q in zip(one.policy, one.ref, strict=True))
    return total / len(step)


METHODS: dict[str, tuple[Callable[..., Learned], Callable[..., float]]] = {
    "ppo": (ppo, ppo_loss),
    "grpo": (grpo, grpo_loss),
    "rloo": (rloo, rloo_loss),
    "reinforce": (reinforce, reinforce_loss),
}


def figures(rollout: Sequence[Written], o: Settings) -> dict[str, float]:
    """What a rollout's metrics are."""
    kls = [kl(one) for one in rollout]
    scores = [shaped(one, o) for one in rollout]
    return {
        "objective/kl": math.fsum(kls) / len(kls),
        "objective/entropy": -math.fsum(x for one in rollout for x in one.old) / len(rollout),
        "objective/scores": math.fsum(scores) / len(scores),
        "objective/rlhf_reward": math.fsum(s - o["kl_coef"] * k for s, k in zip(scores, kls, strict=True)) / len(kls),
        "objective/kl_coef": o["kl_coef"],
    }


def explained_variance(rollout: Sequence[Written], learned: Learned) -> float:
    returns = [x for row in learned.returns for x in row]
    errors = [
        x - v for row, one in zip(learned.returns, rollout, strict=True) for x, v in zip(row, one.values, strict=True)
    ]
    return 1 - deviation(errors) ** 2 / deviation(returns) ** 2


def token_metrics(step: Sequence[Written], learned: Learned, o: Settings, *, whole: bool) -> dict[str, float]:
    """Means over the step's tokens; those of ratios over completions where a whole one is an action."""
    moves = [p - q for one in step for p, q in zip(one.policy, one.old, strict=True)]
    rows = zip(step, learned.advantages, strict=True)
    if whole:
        pairs = [(math.exp(math.fsum(one.policy) - math.fsum(one.old)), own[0]) for one, own in rows]
    else:
        pairs = [(math.exp(p - q), a) for one, own in rows for p, q, a in zip(one.policy, one.old, own, strict=True)]
    return {
        "loss/policy": math.fsum(clipped(ratio, a, o) for ratio, a in pairs) / len(pairs),
        "policy/approxkl": math.fsum(x**2 / 2 for x in moves) / len(moves),
        "policy/clipfrac": sum(acts(ratio, a, o) != 0 for ratio, a in pairs) / len(pairs),
        "val/ratio": math.fsum(ratio for ratio, _ in pairs) / len(pairs),
    }


def value_metrics(step: Sequence[Written], learned: Learned, o: Settings) -> dict[str, float]:
    losses = [
        value_loss(now, before, target, o)
        for one, own in zip(step, learned.returns, strict=True)
        for now, before, target in zip(one.critic, one.values, own, strict=True)
    ]
    return {"loss/value": math.fsum(losses) / len(losses)}
