"""Losses written out in float64 with plain Python loops, independently of the package: the oracle of the tests."""

from __future__ import annotations

import math

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
