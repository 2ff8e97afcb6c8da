"""The course of a run in a line or two of text: its loss, and the figure that tells best whether it helps."""

from __future__ import annotations

import time
from collections.abc import Mapping

from truing.training.sparkline import BLOCKS, sparkline

QUALITY = ("score", "accuracy", "margin", "eval")
"""Figures that tell whether training helps, the most telling first."""

WIDTH = 28
"""Characters of a curve; with its name and range it fits into 60 columns."""

SECONDS = 0.2
"""Between two drawings, so that a long run of quick steps is not spent on drawing."""


class Curves:
    """Collects figures step by step, and draws them now and then."""

    def __init__(self, marks: str = BLOCKS) -> None:
        self._marks = marks
        self._series: dict[str, list[float]] = {"loss": []}
        self._drawn_at = -SECONDS
        self.lines: tuple[str, ...] = ()
        """The curves as last drawn; none before there are two values."""

    def add(self, figures: Mapping[str, float]) -> None:
        """Take a step's figures; those that it does not have are left out of their curves."""
        for name in ("loss", *QUALITY):
            if name in figures:
                self._series.setdefault(name, []).append(figures[name])
        now = time.monotonic()
        if now - self._drawn_at >= SECONDS:
            self.draw()
            self._drawn_at = now

    def draw(self) -> None:
        """Draw the curves as they stand."""
        shown = ["loss", *(name for name in QUALITY if len(self._series.get(name, ())) > 1)][:2]
        self.lines = tuple(self._line(name) for name in shown if len(self._series[name]) > 1)

    def _line(self, name: str) -> str:
        values = self._series[name]
        known = [value for value in values if abs(value) < float("inf")]  # NaN is less than nothing
        within = f"{number(min(known))} to {number(max(known))}" if known else ""
        return f"{name:<9} {sparkline(values, WIDTH, self._marks)}  {within}"


def number(value: float) -> str:
    """A figure in the few digits that a person reads."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.3f}"
