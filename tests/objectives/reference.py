"""Losses written out in float64 with plain Python loops, independently of the package: the oracle of the tests."""

from __future__ import annotations

import math
from collections.abc import Callable

SUM = tuple[list[float], list[float], list[float], list[float]]
"""Per-token log-probs of one pair: chosen, rejected, reference chosen, reference rejected."""


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def dpo(pair: SUM, beta: float, eps: float = 0.0, sft_weight: float = 0.0) -> float:
    chosen, rejected, ref_chosen, ref_rejected = (math.fsum(part) for part in pair)
    z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -(1 - eps) * log_sigmoid(z) - eps * log_sigmoid(-z) - sft_weight * chosen / len(pair[0])


def ipo(pair: SUM, beta: float) -> float:
    chosen, rejected, ref_chosen, ref_rejected = pair
    h = (math.fsum(chosen) - math.fsum(ref_chosen)) / len(chosen)
    h -= (math.fsum(rejected) - math.fsum(ref_rejected)) / len(rejected)
    return (h - 1 / (2 * beta)) ** 2


def simpo(pair: SUM, beta: float, ratio: float) -> float:
    chosen, rejected = math.fsum(pair[0]) / len(pair[0]), math.fsum(pair[1]) / len(pair[1])
    return -log_sigmoid(beta * (chosen - rejected) - ratio * beta)


def orpo(pair: SUM, beta: float) -> float:
    chosen, rejected = math.fsum(pair[0]) / len(pair[0]), math.fsum(pair[1]) / len(pair[1])
    odds_chosen = math.exp(chosen) / (1 - math.exp(chosen))
    odds_rejected = math.exp(rejected) / (1 - math.exp(rejected))
    return -chosen - beta * math.log(1 / (1 + odds_rejected / odds_chosen))


def ratios(pair: SUM) -> tuple[float, float]:
    chosen, rejected, ref_chosen, ref_rejected = (math.fsum(part) for part in pair)
    return chosen - ref_chosen, rejected - ref_rejected


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def robust(pair: SUM, beta: float, eps: float) -> float:
    z = beta * (ratios(pair)[0] - ratios(pair)[1])
    return ((1 - eps) * -log_sigmoid(z) - eps * -log_sigmoid(-z)) / (1 - 2 * eps)


def hinge(pair: SUM, beta: float) -> float:
    return max(0.0, 1 - beta * (ratios(pair)[0] - ratios(pair)[1]))


def cpo(pair: SUM, beta: float, weight: float) -> float:
    chosen, rejected = math.fsum(pair[0]), math.fsum(pair[1])
    return -log_sigmoid(beta * (chosen - rejected)) - weight * chosen / len(pair[0])


def dpo_norm(pair: SUM, beta: float) -> float:
    h_chosen, h_rejected = ratios(pair)
    return -log_sigmoid(beta * (h_chosen / len(pair[0]) - h_rejected / len(pair[1])))


def apo_zero(pair: SUM, beta: float) -> float:
    return 1 - sigmoid(beta * ratios(pair)[0]) + sigmoid(beta * ratios(pair)[1])


def apo_down(pair: SUM, beta: float) -> float:
    return sigmoid(beta * ratios(pair)[0]) + 1 - sigmoid(beta * (ratios(pair)[0] - ratios(pair)[1]))


def nca(pair: SUM, beta: float) -> float:
    chosen, rejected = (beta * h for h in ratios(pair))
    return -log_sigmoid(chosen) - (log_sigmoid(-chosen) + log_sigmoid(-rejected)) / 2


def exo(pair: SUM, beta: float, eps: float) -> float:
    weights = [math.exp(beta * h) for h in ratios(pair)]
    q = [w / sum(weights) for w in weights]
    return sum(a * math.log(a / b) for a, b in zip(q, (1 - eps, eps), strict=True))


def sppo(pair: SUM, beta: float) -> float:
    return (ratios(pair)[0] - 0.5 / beta) ** 2 + (ratios(pair)[1] + 0.5 / beta) ** 2


def bco_pair(pair: SUM, beta: float) -> float:
    return -log_sigmoid(beta * ratios(pair)[0]) - log_sigmoid(-beta * ratios(pair)[1])


def discopop(pair: SUM, beta: float, tau: float) -> float:
    z = beta * (ratios(pair)[0] - ratios(pair)[1])
    mixed = sigmoid(z / tau)
    return (1 - mixed) * -log_sigmoid(z) + mixed * math.exp(-z)


def f_dpo(pair: SUM, beta: float, slope: Callable[[float], float]) -> float:
    chosen, rejected = (slope(math.exp(h)) for h in ratios(pair))
    return -log_sigmoid(beta * (chosen - rejected))


def ld_dpo(pair: SUM, beta: float, alpha: float) -> float:
    shorter = min(len(pair[0]), len(pair[1]))

    def weighed(values: list[float]) -> float:
        return math.fsum(x if i < shorter else alpha * x for i, x in enumerate(values))

    chosen, rejected, ref_chosen, ref_rejected = (weighed(part) for part in pair)
    return -log_sigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def wpo(pair: SUM, beta: float) -> float:
    """With eq. 1's weights, by the policy's own likelihood of both answers."""
    weight = math.exp(math.fsum(pair[0]) / len(pair[0]) + math.fsum(pair[1]) / len(pair[1]))
    return weight * dpo(pair, beta)


def aot(pairs: list[SUM], beta: float) -> float:
    """Mean over ranks of the sorted margins of policy and reference."""
    margins = sorted(math.fsum(p[0]) - math.fsum(p[1]) for p in pairs)
    before = sorted(math.fsum(p[2]) - math.fsum(p[3]) for p in pairs)
    return math.fsum(-log_sigmoid(beta * (u - v)) for u, v in zip(margins, before, strict=True)) / len(pairs)


def aot_unpaired(pairs: list[SUM], beta: float) -> float:
    chosen, rejected = sorted(ratios(p)[0] for p in pairs), sorted(ratios(p)[1] for p in pairs)
    return math.fsum(-log_sigmoid(beta * (a - b)) for a, b in zip(chosen, rejected, strict=True)) / len(pairs)


def kto(ratio: list[float], good: list[bool], mismatched: list[float], beta: float, lam: tuple[float, float]) -> float:
    point = max(0.0, math.fsum(mismatched) / len(mismatched))
    losses = [
        lam[0] * (1 - sigmoid(beta * (h - point))) if up else lam[1] * (1 - sigmoid(beta * (point - h)))
        for h, up in zip(ratio, good, strict=True)
    ]
    return math.fsum(losses) / len(losses)


def bco(
    ratio: list[float], good: list[bool], delta: float, beta: float, bad_weight: list[float] | None = None
) -> float:
    """With `bad_weight`, a weight for each answer that counts where the answer is undesirable."""
    losses = [
        -log_sigmoid(beta * h - delta) if up else -log_sigmoid(delta - beta * h) * weight
        for h, up, weight in zip(ratio, good, bad_weight or [1.0] * len(ratio), strict=True)
    ]
    return math.fsum(losses) / len(losses)


def reward(scores: list[tuple[float, float]], margins: list[float], centering: float) -> float:
    losses = [-log_sigmoid(a - b - m) + centering * (a + b) ** 2 for (a, b), m in zip(scores, margins, strict=True)]
    return math.fsum(losses) / len(losses)
