"""Draws panels: one run's curves with their healthy bands, or several runs over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from truing.pages import page
from truing.pages.palette import BAND, LIGHT, MUTED, WARN
from truing.pages.plotting import LineStyle, dot, figure, label, legend, log_scale, series, thin_series, tick, to_svg
from truing.report.panels import MEMORY, THROUGHPUT, Panel
from truing.report.runs import Run
from truing.training.figures import ENTROPY, Floats, Row, column, number
from truing.training.health import Band, band_of
from truing.training.signs import Complaint

WIDTH, HEIGHT = 3.8, 2.5
"""Inches of a panel: its text is still read on a phone."""
POINTS = 300
MANY_POINTS = 100
"""Of each curve where more than `CROWD` runs share a panel."""
CROWD = 12
MOST_MARKS = 20


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure over the steps of a run."""

    name: str
    x: Floats
    y: Floats
    style: LineStyle
    index: int
    """Its place among the series."""


def thin(x: Floats, y: Floats, limit: int) -> tuple[Floats, Floats]:
    """At most `limit` of the points, among them the first, the last, and the extremes of each stretch."""
    if len(x) <= limit:
        return x, y
    bounds = np.linspace(0, len(x), max(1, (limit - 2) // 2) + 1).astype(int)
    kept = {0, len(x) - 1}
    for start, end in pairwise(bounds):
        kept |= {int(start + y[start:end].argmin()), int(start + y[start:end].argmax())}
    places = np.array(sorted(kept))
    return x[places], y[places]


def values_of(run: Run, metric: str) -> tuple[npt.NDArray[np.int64], Floats]:
    """Steps and finite values of a figure, those included that a report derives."""
    if metric == THROUGHPUT:
        pairs = [(row, number(row.get("tokens")), number(row.get("seconds"))) for row in run.rows]
        return column([{"step": r["step"], "x": t / s} for r, t, s in pairs if t is not None and s], "x")
    if metric == MEMORY:
        steps, values = column(run.rows, "memory_bytes")
        return steps, values / 1e9
    return column(run.rows if metric in run.metrics or metric == ENTROPY else (), metric)


def of_one(run: Run, panel: Panel, complaints: Sequence[Complaint]) -> Markup | None:
    """A panel of one run with its healthy band and what was found there; None where it has no value."""
    curves = []
    for index, (metric, name) in enumerate(panel.lines):
        steps, values = values_of(run, metric)
        if len(steps):
            curves.append(Curve(name, *thin(steps.astype(float), values, POINTS), series(index), index))
    if not curves:
        return None
    metrics = [metric for metric, _ in panel.lines]
    band = next((found for metric in metrics if (found := band_of(metric, run.facts)) is not None), None)
    bounds = band.bounds(run.rows) if band is not None else (None, None)
    said = [each for each in complaints if each.metric in metrics]
    marks = [each.step for each in said]
    if {"loss", "grad_norm"} & set(metrics):
        marks += _skipped(run.rows)
    drawn = _draw(panel, curves, bounds, marks, [curve.name for curve in curves] if len(curves) > 1 else ())
    caption = " ".join(part for part in (panel.caption, _range_in_words(band, bounds)) if part)
    return page.figure(drawn, caption, [each.sentence for each in said])


def of_several(runs: Sequence[Run], panel: Panel) -> list[Markup]:
    """A panel for each of its figures, with a curve a run in the look of its place; none where no run has a value."""
    crowd = len(runs) > CROWD
    drawn = []
    for metric, name in panel.lines:
        curves = []
        for index, run in enumerate(runs):
            steps, values = values_of(run, metric)
            if len(steps):
                points = thin(steps.astype(float), values, MANY_POINTS if crowd else POINTS)
                curves.append(Curve(run.name, *points, thin_series(index) if crowd else series(index), index))
        if curves:
            title = panel.title if len(panel.lines) == 1 else f"{panel.title}: {name}"
            drawn.append(page.figure(_draw(replace(panel, title=title), curves), panel.caption))
    return drawn


def reward_against_kl(runs: Sequence[Run]) -> Markup | None:
    """What the score cost in distance from the reference; None where no run has both."""
    made, (axes,) = figure(WIDTH, HEIGHT)
    ends = []
    for index, run in enumerate(runs):
        points = _score_and_kl(run.rows)
        if not len(points):
            continue
        path = thin_series(index)
        path["linewidth"] = 0.5 if len(runs) > CROWD else 1.2
        axes.plot(points[:, 0], points[:, 1], **path)
        axes.plot(points[-1:, 0], points[-1:, 1], **dot(index))
        ends.append(f"{run.name} ends at {tick(points[-1, 0])} with {tick(points[-1, 1])}")
    if not ends:
        return None
    title = "Score against √KL"
    label(axes, title, "√KL to the reference (√nats a completion)", "score")
    drawn = to_svg(made, title, f"{'; '.join(ends[:20])}.")
    return page.figure(
        drawn,
        "The key figure: a mark where the run ended. A score that rises with little KL is good; once it flattens or "
        "falls while KL grows, the reward is being gamed.",
    )


def _score_and_kl(rows: Sequence[Row]) -> Floats:
    """√KL and score, averaged over stretches of steps: float64 [n, 2]."""
    pairs = [
        (max(kl, 0.0), score)
        for row in rows
        if (kl := number(row.get("objective/kl"))) is not None
        and (score := number(row.get("objective/scores"))) is not None
    ]
    if not pairs:
        return np.empty((0, 2))
    parts = np.array_split(np.array(pairs), min(len(pairs), 40))
    means = np.array([part.mean(axis=0) for part in parts])
    means[:, 0] = np.sqrt(means[:, 0])
    return means


def _draw(
    panel: Panel,
    curves: Sequence[Curve],
    band: tuple[float | None, float | None] = (None, None),
    marks: Sequence[int] = (),
    names: Sequence[str] = (),
) -> Markup:
    made, (axes,) = figure(WIDTH, HEIGHT)
    if len(curves) > CROWD:
        _plot_crowd(axes, curves)
    else:
        for curve in curves:
            axes.plot(curve.x, curve.y, **_look(curve, len(curves)))
    _scale(axes, curves, panel)
    _shade(axes, band)
    for step in dict.fromkeys(marks):
        axes.axvline(step, color=LIGHT[WARN], linewidth=0.9, linestyle=(0, (2, 2)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    label(axes, panel.title, "step", panel.unit)
    if names:
        legend(axes, names)
    return to_svg(made, panel.title, _described(curves))


def _plot_crowd(axes: Axes, curves: Sequence[Curve]) -> None:
    """All curves as one artist, which takes a third of the time."""
    axes.add_collection(
        LineCollection(
            [np.column_stack((curve.x, curve.y)) for curve in curves],
            colors=[curve.style["color"] for curve in curves],
            linewidths=[curve.style["linewidth"] for curve in curves],
        )
    )
    axes.autoscale_view()


def _look(curve: Curve, among: int) -> LineStyle:
    """The curve's style with six markers on its way; none where it is alone, and only one where it is a point."""
    if len(curve.x) == 1:
        return dot(curve.index)
    style = LineStyle(**curve.style)
    style["marker"] = style["marker"] if among > 1 else ""
    style["markevery"] = np.linspace(0, len(curve.x) - 1, 6).astype(int).tolist()
    return style


def _scale(axes: Axes, curves: Sequence[Curve], panel: Panel) -> None:
    """Some air around a flat curve, and a logarithmic axis for norms that differ by orders of magnitude."""
    low = min(float(curve.y.min()) for curve in curves)
    high = max(float(curve.y.max()) for curve in curves)
    if panel.logarithmic and low > 0 and high > 30 * float(np.median(curves[0].y)):
        log_scale(axes)
        return
    if high - low <= 1e-3 * max(abs(low), abs(high)):
        air = 0.05 * max(abs(low), abs(high)) or 0.05
        low, high = low - air, high + air
    air = 0.06 * (high - low)
    axes.set_ylim(low - air, high + air)


def _shade(axes: Axes, band: tuple[float | None, float | None]) -> None:
    """Colour the part of the healthy band that the curve's own range shows."""
    low, high = axes.get_ylim()
    bottom = low if band[0] is None else max(low, band[0])
    top = high if band[1] is None else min(high, band[1])
    if band != (None, None) and bottom < top:
        axes.axhspan(bottom, top, color=LIGHT[BAND], alpha=0.14, linewidth=0)
        for edge in (bottom, top):
            if low < edge < high:
                axes.axhline(edge, color=LIGHT[MUTED], linewidth=0.6, linestyle=(0, (1, 2)))


def _described(curves: Sequence[Curve]) -> str:
    """What somebody who does not see the figure should know."""
    said = [
        f"{curve.name}: from {tick(curve.y[0])} at step {curve.x[0]:.0f} to {tick(curve.y[-1])} at step "
        f"{curve.x[-1]:.0f}, between {tick(curve.y.min())} and {tick(curve.y.max())}"
        for curve in curves[:8]
    ]
    return "; ".join(said) + (f"; and {len(curves) - 8} more." if len(curves) > 8 else ".")


def _range_in_words(band: Band | None, bounds: tuple[float | None, float | None]) -> str:
    low, high = bounds
    if band is None or (low is None and high is None):
        return ""
    if low is None or low == 0:
        return f"Healthy: up to {tick(high or 0.0)}."
    return f"Healthy: {tick(low)} to {tick(high)}." if high is not None else f"Healthy: from {tick(low)}."


def _skipped(rows: Sequence[Row]) -> list[int]:
    """The first steps whose loss or gradient was not finite, so that they moved no weight."""
    broken = [row["step"] for row in rows if any(name in row and row[name] is None for name in ("loss", "grad_norm"))]
    return broken[:MOST_MARKS]
