"""How often one result's completions beat another's, and how often they would at equal length."""

from __future__ import annotations

import numpy as np

from truing.evaluate.intervals import Doubles, Estimate, Ints, Resamples, sums_by_cluster

PENALTY = 1e-4
"""On the squared slope of length, in the mean loss: keeps it finite where length alone decides every win."""
ITERATIONS = 40
LONGEST_STEP = 2.0
CERTAIN = 15.0
"""Largest |intercept|: σ(15) is 1 − 3e-7, which is what a result that always wins is given."""


def outcomes(scores: Doubles, others: Doubles) -> Doubles:
    """1 where the score is higher, ½ where both are equal, 0 else: float64, any shape.

    >>> outcomes(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0]))
    array([1. , 0.5, 0. ])
    """
    return np.asarray((scores > others) + 0.5 * (scores == others), dtype=np.float64)


def mean(values: Doubles, clusters: Ints, resamples: Resamples) -> Estimate:
    """The mean of a figure of every completion, such as the outcome: float64 [S, N] by seed, int64 [N]."""
    count = resamples.clusters.shape[1]
    sizes = sums_by_cluster(np.ones_like(values), clusters, count)
    return resamples.ratio(sums_by_cluster(values, clusters, count), sizes)


def length_controlled(wins: Doubles, longer: Doubles, clusters: Ints, resamples: Resamples) -> Estimate:
    """The win-rate at equal length, after length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475, eq. 2).

    P(win) = σ(θ + φ tanh(Δ / std Δ)) is fitted to the outcomes, with Δ the difference of the two completions' lengths;
    the result is σ(θ), where the length term is left out. `wins` and `longer` (Δ, in tokens) are float64 [S, N].

    It departs from the paper in four ways. There is no term for the difficulty of an instruction, which the paper fits
    to many models together. Length is in tokens, not in characters. A judge says who wins, not with which probability;
    a tie is half a win. The slope alone is penalised, by a hair, so that with equal lengths σ(θ) is the raw win-rate.
    Every draw fits anew; std Δ is that of all completions of a seed.
    """
    fitted = [_intercepts(own, _lengths(by), clusters, resamples) for own, by in zip(wins, longer, strict=True)]
    rates = 1 / (1 + np.exp(-np.stack(fitted, axis=1)))  # [1 + B, S]
    return resamples.averaged(rates[0], rates[1:])


def _lengths(longer: Doubles) -> Doubles:
    """The length term of one seed: float64 [N] → [N], between −1 and 1."""
    spread = float(longer.std())
    return np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)


def _intercepts(wins: Doubles, term: Doubles, clusters: Ints, resamples: Resamples) -> Doubles:
    """θ of one seed: first of all completions, then of each draw: float64 [N], [N] → [1 + B].

    Newton's method on the mean loss of each draw, all draws at once.
    """
    whole = np.ones((1, resamples.clusters.shape[1]))
    weights = np.concatenate([whole, resamples.clusters])[:, clusters]  # [1 + B, N]
    total = weights.sum(axis=1)
    weights = weights / np.where(total > 0, total, 1.0)[:, None]
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(ITERATIONS):
        chance = 1 / (1 + np.exp(-(theta[:, None] + phi[:, None] * term)))
        error, curve = weights * (chance - wins), weights * chance * (1 - chance)
        slope_theta, slope_phi = error.sum(axis=1), error @ term + PENALTY * phi
        a, b = curve.sum(axis=1) + 1e-12, curve @ term
        c = curve @ np.square(term) + PENALTY
        determinant = a * c - b * b
        by_theta = np.clip((c * slope_theta - b * slope_phi) / determinant, -LONGEST_STEP, LONGEST_STEP)
        by_phi = np.clip((a * slope_phi - b * slope_theta) / determinant, -LONGEST_STEP, LONGEST_STEP)
        theta, phi = np.clip(theta - by_theta, -CERTAIN, CERTAIN), phi - by_phi
        if max(np.abs(by_theta).max(), np.abs(by_phi).max()) < 1e-10:
            break
    return theta
