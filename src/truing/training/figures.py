"""Reads figures from the rows of metrics.jsonl, whole or damaged. Free of torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]

ENTROPY = "entropy per token"
"""Derived: the entropy of a completion, `objective/entropy`, divided by its length."""

WINDOW = 5
"""Rows that a figure is averaged over before it is judged: one batch's excursion is noise."""


LARGEST = 1e100
"""Figures beyond it are taken for it, so that sums and squares stay finite."""


def column(rows: Sequence[Row], metric: str) -> tuple[npt.NDArray[np.int64], Floats]:
    """Steps and finite values of a figure, or of the derived one: int64 [n], float64 [n]."""
    if metric == ENTROPY:
        found = [_quotient(row, "objective/entropy", "completions/length") for row in rows]
    else:
        found = [row.get(metric) for row in rows]
    if found.count(None) == len(found):  # most figures are those of other methods
        return np.empty(0, dtype=np.int64), np.empty(0)
    values = _floats(found)
    here = np.flatnonzero(np.isfinite(values))
    steps = _floats([rows[place].get("step") for place in here.tolist()])
    said = (np.abs(steps) < 2**53) & (steps == np.floor(steps))
    return steps[said].astype(np.int64), values[here[said]].clip(-LARGEST, LARGEST)


def _floats(found: Sequence[object]) -> Floats:
    """The finite numbers among what stands in a column of rows, and NaN for the rest: float64 [n]."""
    plain = set(map(type, found)) <= {float, int, type(None)}
    with contextlib.suppress(OverflowError):  # of an integer beyond 1e308
        if plain:  # nearly always: ten times as fast
            return np.array(found, dtype=float)
    return np.array([math.nan if (value := number(each)) is None else value for each in found])


def number(value: object) -> float | None:
    """A finite number, or None for whatever else a damaged row may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return max(-LARGEST, min(LARGEST, float(value))) if math.isfinite(value) else None
    except OverflowError:
        return None


def step_of(row: Row) -> int | None:
    """The step of a row, if it says one."""
    step = row.get("step")
    return step if type(step) is int and abs(step) < 2**62 else None


def trailing_mean(values: Floats, window: int) -> Floats:
    """The mean of each value and up to `window` - 1 before it: float64 [n].

    >>> trailing_mean(np.array([2.0, 4.0, 6.0, 8.0]), 2).tolist()
    [2.0, 3.0, 5.0, 7.0]
    """
    begun = [values[: place + 1].mean() for place in range(min(window - 1, len(values)))]
    if len(values) < window:
        return np.array(begun, dtype=float)
    return np.concatenate([begun, sliding_window_view(values, window).mean(axis=1)])


def _quotient(row: Row, above: str, below: str) -> float | None:
    numerator, denominator = number(row.get(above)), number(row.get(below))
    return None if numerator is None or not denominator else numerator / denominator


def fall_of(values: Floats) -> float:
    """How far the last tenth of the values lies below the first, if by more than three standard errors; else 0."""
    part = max(WINDOW, len(values) // 10)
    if len(values) < 2 * part:
        return 0.0
    first, last = values[:part], values[-part:]
    fall = float(first.mean() - last.mean())
    error = math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / part)
    return fall if fall > 3 * error else 0.0
