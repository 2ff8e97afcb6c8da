"""Figures of an experiment: rewards with intervals, the frontier with every arm's path, and proxy against truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from truing.lab.arms import BASE, REFERENCE, Outcome
from truing.lab.experiment import by_arm
from truing.lab.summary import Row, Summary
from truing.pages.palette import INK, LIGHT
from truing.pages.plotting import figure, label, legend, series
from truing.world.optimum import Frontier

BETAS = tuple(float(beta) for beta in np.geomspace(4.0, 0.02, 80))


def rewards_figure(rows: Sequence[Row], basis: str) -> Figure:
    """True reward of every arm with its interval, one below the other."""
    made, (axes,) = figure(6.4, 0.7 + 0.27 * len(rows))
    made.subplots_adjust(left=0.27)
    label(axes, "True reward", f"expected true reward; 95 % intervals {basis}", "")
    for place, row in enumerate(reversed(rows)):
        half = 0.0 if math.isinf(row.reward.half) else row.reward.half
        axes.errorbar(
            row.reward.mean, place, xerr=half, color=LIGHT[INK], marker="o", markersize=4, capsize=3, linewidth=1.2
        )
    axes.yaxis.set_major_locator(FixedLocator(range(len(rows))))
    axes.yaxis.set_major_formatter(FixedFormatter([row.arm for row in reversed(rows)]))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    return made


def frontier_figure(summary: Summary, outcomes: Sequence[Outcome], proxy_name: str | None) -> Figure:
    """The exact frontier, and where every arm went below it."""
    made, (axes,) = figure(6.4, 4.2)
    label(axes, "Reward against distance from the start", "KL(policy ‖ sft), nats a prompt", "expected true reward")
    arms = {name: found for name, found in by_arm(outcomes).items() if name not in (BASE, REFERENCE)}
    farthest = 1.1 * max((row.kl for row in summary.rows if row.arm != BASE), default=1.0)
    draw_frontier(axes, summary.frontier, farthest)
    names = ["the exact optimum"]
    for place, (name, found) in enumerate((n, f) for n, f in arms.items() if f[0].reward):
        points = path_of(found, summary)
        style = series(place)
        style["markevery"] = [len(points) - 1]
        axes.plot([x for x, _ in points], [y for _, y in points], **style)
        names.append(name)
    scorer = next((found[0] for found in arms.values() if found[0].best_of), None)
    if scorer is not None and proxy_name is not None:
        points = [(fmean(one.kl), fmean(one.reward)) for one in scorer.best_of]
        style = series(len(names) - 1)
        style["markevery"] = 1
        axes.plot([x for x, _ in points], [y for _, y in points], **style)
        names.append(proxy_name)
    axes.set_xlim(0, farthest)
    legend(axes, names)
    return made


def draw_frontier(axes: Axes, frontier: Frontier, farthest: float) -> None:
    """The exact optimum as a line from the start to the right edge."""
    points = [(0.0, frontier.reward_at(0.0)), *((p.kl, p.reward) for p in frontier.curve(BETAS))]
    points = [point for point in points if point[0] <= farthest]
    points.append((farthest, frontier.reward_at(farthest)))
    axes.plot([x for x, _ in points], [y for _, y in points], color=LIGHT[INK], linewidth=2.0)


def path_of(found: Sequence[Outcome], summary: Summary) -> list[tuple[float, float]]:
    """KL and true reward from the start through every look to the end, averaged over seeds."""
    looks = [[(look.kl, look.reward) for look in outcome.looks[:-1]] for outcome in found]
    ends = [(fmean(outcome.kl), fmean(outcome.reward)) for outcome in found if outcome.reward]
    columns = [*zip(*looks, strict=True), tuple(ends)] if ends else []
    start = (0.0, summary.row(REFERENCE).reward.mean)
    return [start, *((fmean(x for x, _ in column), fmean(y for _, y in column)) for column in columns)]


def hacking_figure(outcomes: Sequence[Outcome], hackers: Sequence[str], best_of: str) -> Figure:
    """What the reward model believes, and what is true, as policies move away from the start."""
    made, (left, right) = figure(6.8, 3.1, columns=2)
    label(left, "What the reward model says", "√KL (√nats)", "expected score")
    label(right, "What is true", "√KL (√nats)", "expected true reward")
    arms = by_arm(outcomes)
    scorer = next(found[0] for found in arms.values() if found[0].best_of)
    start = scorer.best_of[0]
    names = []
    for place, name in enumerate(name for name in hackers if name in arms):
        outcome = arms[name][0]
        ends = (fmean(outcome.kl), outcome.figures["proxy/proxy"], fmean(outcome.reward))
        looks = [(look.kl, look.proxy or 0.0, look.reward) for look in outcome.looks[:-1]]
        _curve(left, right, [(0.0, fmean(start.proxy), fmean(start.reward)), *looks, ends], place)
        names.append(name)
    points = [(fmean(one.kl), fmean(one.proxy), fmean(one.reward)) for one in scorer.best_of]
    _curve(left, right, points, len(names))
    legend(right, [*names, best_of])
    return made


def _curve(left: Axes, right: Axes, points: Sequence[tuple[float, float, float]], place: int) -> None:
    style = series(place)
    style["markevery"] = 1
    distance = [math.sqrt(max(0.0, kl)) for kl, _, _ in points]
    left.plot(distance, [proxy for _, proxy, _ in points], **style)
    right.plot(distance, [reward for _, _, reward in points], **style)


def answers_of(outcomes: Sequence[Outcome]) -> Mapping[str, list[tuple[str, str, float]]]:
    """The likeliest answers of every policy's first seed: prompt → (arm, answer, true reward)."""
    told: dict[str, list[tuple[str, str, float]]] = {}
    for name, found in by_arm(outcomes).items():
        for prompt, answer, reward in found[0].answers:
            told.setdefault(prompt, []).append((name, answer, reward))
    return told
