"""Best-of-n sampling: what the best of several samples is worth, and how far that strays from what was sampled."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from truing.core.errors import InputError

FloatArray = npt.NDArray[np.float64]


def expected_best(scores: FloatArray, k: int) -> FloatArray:
    """Expected score of the best of `k` samples, from the n of each prompt: float64 [P, n] → float64 [P].

    The mean of the largest over all subsets of k, so it is unbiased for every k ≤ n (arXiv:2112.09332, appendix I):
    with scores in rising order, Σᵢ C(i − 1, k − 1) / C(n, k) · score⁽ⁱ⁾.

    >>> expected_best(np.array([[1.0, 2.0, 4.0]]), 2)  # (2 + 4 + 4) / 3
    array([3.33333333])
    """
    n = scores.shape[1]
    if not 1 <= k <= n:
        raise InputError(f"the best of {k} samples cannot be estimated from {n}; expected 1 to {n}")
    subsets = math.comb(n, k)
    weights = np.array([math.comb(i, k - 1) / subsets for i in range(n)])  # float64 [n]; C(i, k − 1) = 0 for i < k − 1
    found: FloatArray = np.sort(scores, axis=1) @ weights
    return found


def kl_bound(n: int) -> float:
    """Nats of KL(best of n ‖ one sample) at most: log n − (n − 1)/n.

    It is reached where no two samples have the same score, and is an upper bound otherwise (arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def clustered_error(values: FloatArray, clusters: npt.NDArray[np.int64]) -> float | None:
    """Standard error of the mean of values that are independent between clusters alone: float64 [N], int64 [N].

    Residuals are summed in each cluster before they are squared (Liang and Zeger 1986), with the factor G / (G − 1) of
    G clusters. None of a single cluster, which says nothing about others.
    """
    _, numbers = np.unique(clusters, return_inverse=True)
    count = int(numbers.max(initial=-1)) + 1
    if count < 2:
        return None
    sums = np.bincount(numbers, weights=values - values.mean())
    return math.sqrt(count / (count - 1) * float(sums @ sums)) / len(values)
