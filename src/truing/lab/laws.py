"""Over-optimisation: how the true reward moves as a policy is pushed towards a proxy.

With d = √KL(π ‖ π₀), the gain over the reference follows d(α − βd) for best-of-n and d(α − β log d) for RL
(Gao et al. 2022, arXiv:2210.10760).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from truing.lab.arms import TRUTH, Experiment, Outcome
from truing.lab.experiment import by_arm

Law = Literal["best of n", "RL"]
Curve = list[tuple[float, float]]
"""Points (d, gain)."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A law fitted to a curve by least squares."""

    law: Law
    alpha: float
    beta: float
    r_squared: float

    @property
    def peak(self) -> float | None:
        """The d at which the gain is greatest; None where the law has no peak."""
        if self.beta <= 0 or (self.law == "best of n" and self.alpha <= 0):
            return None
        return self.alpha / (2 * self.beta) if self.law == "best of n" else math.exp(self.alpha / self.beta - 1)

    def gain(self, d: float) -> float:
        """What the law says."""
        if d <= 0:
            return 0.0
        return d * (self.alpha - self.beta * (d if self.law == "best of n" else math.log(d)))


def fit(law: Law, curve: Curve) -> Fit | None:
    """Fit a law; None where fewer than three points lie off the start. R² is against the mean of the gains."""
    points = [(d, gain) for d, gain in curve if d > 1e-6]
    if len(points) < 3:
        return None
    d, gain = (np.array(column) for column in zip(*points, strict=True))
    columns = np.stack([d, -d * (d if law == "best of n" else np.log(d))], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, gain, rcond=None)
    left = gain - columns @ np.array([alpha, beta])
    spread = float(((gain - gain.mean()) ** 2).sum())
    return Fit(law, float(alpha), float(beta), 1 - float((left**2).sum()) / spread if spread > 0 else math.nan)


def curves(experiment: Experiment, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Law, Curve, Curve]]:
    """For every proxy: best-of-n by it, and RL paid by it; curves of truth and of the proxy, averaged over seeds."""
    arms = by_arm(outcomes)
    for arm in experiment.arms:
        if arm.scores:
            of_seeds = [[(fmean(b.kl), fmean(b.reward), fmean(b.proxy)) for b in one.best_of] for one in arms[arm.name]]
            yield (arm.name, "best of n", *_averaged(of_seeds))
    for arm in experiment.arms:
        if arm.reward is not None and arm.reward != TRUTH:
            of_seeds = [_course(one, scorer) for one, scorer in zip(arms[arm.name], arms[arm.reward], strict=True)]
            yield (arm.name, "RL", *_averaged(of_seeds))


def fits(experiment: Experiment, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Fit]]:
    """The laws fitted to all curves of the truth."""
    for name, law, truth, _ in curves(experiment, outcomes):
        found = fit(law, truth)
        if found is not None:
            yield name, found


def _course(outcome: Outcome, scorer: Outcome) -> list[tuple[float, float, float]]:
    """KL, truth and proxy of a run, from the reference to its end."""
    start = scorer.best_of[0]
    end = (fmean(outcome.kl), fmean(outcome.reward), outcome.figures["proxy/proxy"])
    looks = [(look.kl, look.reward, look.proxy or 0.0) for look in outcome.looks[:-1]]
    return [(0.0, fmean(start.reward), fmean(start.proxy)), *looks, end]


def _averaged(seeds: Sequence[Sequence[tuple[float, float, float]]]) -> tuple[Curve, Curve]:
    truth, proxy = [], []
    for points in zip(*seeds, strict=True):
        d = math.sqrt(max(0.0, fmean(kl for kl, _, _ in points)))
        truth.append((d, fmean(reward - own[0][1] for (_, reward, _), own in zip(points, seeds, strict=True))))
        proxy.append((d, fmean(score - own[0][2] for (_, _, score), own in zip(points, seeds, strict=True))))
    return truth, proxy
