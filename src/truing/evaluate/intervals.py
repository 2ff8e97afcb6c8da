"""Intervals by resampling: held-out prompts, and where there are several, the seeds of the runs.

What is independent is drawn anew: all rows of a prompt together, for they are not independent of each other (a cluster
bootstrap; Davison and Hinkley 1997, section 3.8). All results are measured on the same prompts and trained with the
same seeds, so they share their draws, and a difference of two is a difference draw by draw: what a hard prompt or a
lucky seed does to both cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWS = 4000
LEVEL = 0.95
STREAM = 0x7472_7565
"""Seeds the draws together with the seed: figures that somebody simulated from seed 0 must not be drawn by the very
same numbers.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A figure and what it is in each draw."""

    value: float
    draws: Doubles  # float64 [B]
    clusters: int
    """How many there were to draw from."""

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The percentile interval (Efron 1979); both ends are the value where there was one cluster and one seed."""
        tail = (1 - level) / 2
        low, high = np.quantile(self.draws, [tail, 1 - tail])
        return float(low), float(high)

    def minus(self, other: Estimate) -> Estimate:
        """The paired difference; both have to come from the same resamples."""
        return Estimate(self.value - other.value, self.draws - other.draws, self.clusters)

    def excludes(self, value: float, level: float = LEVEL) -> bool:
        """Whether a value lies outside of the interval."""
        low, high = self.interval(level)
        return value < low or value > high


@dataclass(frozen=True, slots=True, eq=False)
class Resamples:
    """How often each cluster was drawn, and what each seed counts."""

    clusters: Doubles  # float64 [B, G], each row sums to G
    seeds: Doubles  # float64 [B, S], each row sums to 1

    @classmethod
    def draw(cls, clusters: int, seeds: int = 1, *, count: int = DRAWS, seed: int = 0) -> Resamples:
        """Draw clusters with replacement, and seeds apart from them.

        Of S seeds S − 1 are drawn: with all S, the variance of a mean comes out too small by (S − 1)/S, which is half
        of it for two seeds (Rao and Wu 1988). One seed has nothing to say about others, and is left as it is.
        """
        generator = np.random.default_rng((STREAM, seed))
        drawn = generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=count)
        taken = max(1, seeds - 1)
        of_seeds = generator.multinomial(taken, np.full(seeds, 1 / seeds), size=count)
        return cls(drawn.astype(np.float64), of_seeds / taken)

    def ratio(self, numerators: Doubles, denominators: Doubles) -> Estimate:
        """Σ numerator / Σ denominator over the clusters, averaged over the seeds: float64 [S, G] each.

        With counts as denominators it is a mean. A single row stands for all seeds. A draw in which the denominators
        sum to zero is left out of that draw's average by being given the estimate itself.
        """
        shape = (self.seeds.shape[1], self.clusters.shape[1])
        above, below = (np.broadcast_to(part, shape) for part in (numerators, denominators))
        each = above.sum(axis=1) / below.sum(axis=1)  # [S]
        sums = self.clusters @ below.T  # [B, S]
        found = np.divide(self.clusters @ above.T, sums, out=np.tile(each, (len(sums), 1)), where=sums > 0)
        return self.averaged(each, found)

    def averaged(self, each: Doubles, draws: Doubles) -> Estimate:
        """The mean over the seeds of a figure that each has: float64 [S], and [B, S] in each draw."""
        return Estimate(float(each.mean()), (self.seeds * draws).sum(axis=1), self.clusters.shape[1])


def sums_by_cluster(values: Doubles, clusters: Ints, count: int) -> Doubles:
    """Sum values by the number of their cluster: float64 [..., N], int64 [N] → float64 [..., count].

    >>> sums_by_cluster(np.array([1.0, 2.0, 4.0]), np.array([0, 1, 0]), 2)
    array([5., 2.])
    """
    flat = values.reshape(-1, values.shape[-1])
    found: Doubles = np.stack([np.bincount(clusters, weights=row, minlength=count) for row in flat])
    return np.asarray(found.reshape(*values.shape[:-1], count), dtype=np.float64)


def numbered(keys: npt.NDArray[np.int64]) -> tuple[Ints, int]:
    """Number clusters from 0 in the order of their keys; return each row's number and how many there are.

    >>> numbered(np.array([7, 3, 7]))
    (array([1, 0, 1]), 2)
    """
    found, numbers = np.unique(keys, return_inverse=True)
    return numbers.astype(np.int64), len(found)
