"""A figure with its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Z = 1.959964
"""The normal deviation that 95 % lie within."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and the bounds that it lies within with 95 % confidence."""

    value: float
    low: float
    high: float

    @classmethod
    def of_share(cls, hits: npt.NDArray[np.bool_], clusters: npt.NDArray[np.int64]) -> Interval:
        """The share of hits (bool [N], N ≥ 1) where rows of one cluster (int64 [N]) are not independent.

        Wilson's interval (1927) of as many independent rows as would be as uncertain: N over the design effect (Kish
        1965), which is not taken below 1. Where all rows agree, no effect can be measured and each cluster counts once.

        >>> found = Interval.of_share(np.array([True, True, False, False]), np.arange(4))
        >>> round(found.low, 3), found.value, round(found.high, 3)
        (0.125, 0.5, 0.875)
        """
        share, rows = float(hits.mean()), len(hits)
        _, numbers = np.unique(clusters, return_inverse=True)
        sums = np.bincount(numbers, weights=hits - share)
        count = len(sums)
        if 0 < share < 1 and count > 1:
            variance = count / (count - 1) * float((sums**2).sum()) / rows**2
            size = rows / max(1.0, variance * rows / (share * (1 - share)))
        else:
            size = float(count)
        middle = (share + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
        half = _Z / (1 + _Z**2 / size) * math.sqrt(share * (1 - share) / size + _Z**2 / (4 * size**2))
        return cls(share, max(0.0, middle - half), min(1.0, middle + half))
