"""A series as one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*%#"
"""Eight heights in letters that every console has."""

LEVEL = 0.45
"""Where a series is drawn that has no lowest and highest value."""


def sparkline(values: Sequence[float | None], width: int, marks: str = BLOCKS) -> str:
    """Draw a series `width` characters wide, from its lowest value at the first of `marks` to its highest at the last.

    A series longer than that is thinned: a character is the mean of its share of the values, but the lowest and the
    highest value of all are always seen. None and what is not finite are gaps; a shorter series ends in blanks.

    >>> sparkline([0, 1, None, 2, 7], 6)
    '▁▂ ▃█ '
    >>> sparkline([3, 3], 2)
    '▄▄'
    """
    series = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    series[~np.isfinite(series)] = math.nan
    heights = _heights(series)
    drawn = _thinned(heights, width) if len(heights) > width else heights
    return "".join(_mark(float(height), marks) for height in drawn).ljust(width)


def _heights(series: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The series between 0 and 1; just below the middle where it is level."""
    if np.isnan(series).all():
        return series
    halves = series / 2  # the difference of two large floats would be infinite
    low, high = np.nanmin(halves), np.nanmax(halves)
    return np.where(np.isnan(series), math.nan, LEVEL) if low == high else (halves - low) / (high - low)


def _thinned(heights: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Means of `width` equal shares; those of the extremes are the extremes, the later beside the earlier in one."""
    edges = np.arange(width) * len(heights) // width
    known = ~np.isnan(heights)
    counts = np.add.reduceat(known, edges, dtype=np.int64)
    means = np.full(width, math.nan)
    np.divide(np.add.reduceat(np.where(known, heights, 0.0), edges), counts, out=means, where=counts > 0)
    if not known.any():
        return means
    places = sorted((int(np.nanargmin(heights)), int(np.nanargmax(heights))))
    first, second = (int(np.searchsorted(edges, place, side="right")) - 1 for place in places)
    if first == second and width > 1 and places[0] != places[1]:
        first, second = (first, first + 1) if first + 1 < width else (first - 1, first)
    means[first], means[second] = heights[places[0]], heights[places[1]]
    return means


def _mark(height: float, marks: str) -> str:
    return " " if math.isnan(height) else marks[min(len(marks) - 1, int(height * len(marks)))]
