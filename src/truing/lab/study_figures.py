"""Figures of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from truing.lab.arms import Experiment, Outcome
from truing.lab.experiment import by_arm
from truing.lab.figures import frontier_figure
from truing.lab.laws import curves, fit
from truing.lab.study_settings import FigureSettings
from truing.lab.study_tables import values_of
from truing.lab.summary import Interval, Summary
from truing.pages.plotting import figure, label, legend, series

NAMES = {
    "reward": "expected true reward",
    "kl": "KL(policy ‖ sft), nats",
    "forgetting": "rise of the loss on running text, nats a token",
}


def study_figure(
    asked: FigureSettings, experiment: Experiment, summary: Summary, outcomes: Sequence[Outcome]
) -> Figure:
    """Draw what a study asks for."""
    if asked.use == "frontier":
        return frontier_figure(summary, outcomes, "best of n")
    if asked.use == "overoptimisation":
        return _overoptimisation(experiment, outcomes)
    made, panels = figure(4.2 * len(asked.y) + 0.6, 3.6, columns=len(asked.y))
    for axes, measure in zip(panels, asked.y, strict=True):
        _lines(axes, asked, measure, experiment, outcomes)
    return made


def _lines(
    axes: Axes, asked: FigureSettings, measure: str, experiment: Experiment, outcomes: Sequence[Outcome]
) -> None:
    arms = by_arm(outcomes)
    tagged = [arm for arm in experiment.arms if asked.by in arm.tags]
    places = sorted({float(arm.tags[asked.x]) for arm in tagged if asked.x in arm.tags})
    label(axes, NAMES.get(measure, measure).split(",")[0], asked.x_label or asked.x, NAMES.get(measure, measure))
    if asked.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
    names = list(dict.fromkeys(str(arm.tags[asked.by]) for arm in tagged))
    for number, name in enumerate(names):
        own = [arm for arm in tagged if str(arm.tags[asked.by]) == name]
        varied = {float(arm.tags[asked.x]): arm.name for arm in own if asked.x in arm.tags}
        along = sorted(varied) or places
        found = [Interval.of(values_of(arms[varied.get(x, own[0].name)], measure)) for x in along]
        style = series(number)
        style["markevery"] = 1
        axes.plot(along, [one.mean for one in found], **style)
        low, high = ([one.mean + sign * _half(one) for one in found] for sign in (-1, 1))
        axes.fill_between(along, low, high, color=style["color"], alpha=0.13, linewidth=0)
    legend(axes, names)


def _half(interval: Interval) -> float:
    return 0.0 if math.isinf(interval.half) else interval.half


def _overoptimisation(experiment: Experiment, outcomes: Sequence[Outcome]) -> Figure:
    """Gains in truth, with the fitted laws as thin lines, for best-of-n and for RL."""
    made, panels = figure(8.4, 3.6, columns=2)
    for axes, law in zip(panels, ("best of n", "RL"), strict=True):
        label(axes, f"Gain in true reward, {law}", "√KL (√nats)", "gain over the reference")
        found = [(name, truth) for name, kind, truth, _ in curves(experiment, outcomes) if kind == law]
        for number, (_, truth) in enumerate(found):
            style = series(number)
            style["markevery"] = 1
            style["linestyle"] = "none"
            axes.plot([d for d, _ in truth], [gain for _, gain in truth], **style)
        for number, (_, truth) in enumerate(found):
            fitted = fit("RL" if law == "RL" else "best of n", truth)
            if fitted is not None:
                along = np.linspace(0, max(d for d, _ in truth), 60)
                axes.plot(along, [fitted.gain(float(d)) for d in along], color=series(number)["color"], linewidth=0.9)
        legend(axes, [name for name, _ in found])
    return made
