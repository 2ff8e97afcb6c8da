"""A figure with its 95 % interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and the bounds that it lies within with 95 % confidence."""

    value: float
    low: float
    high: float
