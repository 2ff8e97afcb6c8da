"""What an experiment says: a row for each arm with intervals, and which arms the intervals tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from truing.lab.arms import BASE, REFERENCE, Experiment, Outcome
from truing.lab.experiment import by_arm
from truing.world.optimum import Frontier, Levels, Point

# fmt: off
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
# fmt: on
"""Two-sided 95 % points of Student's t, by degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and half the width of its 95 % interval by Student's t; infinite for a single value."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        if len(values) < 2:
            return cls(fmean(values), math.inf)
        freedom = len(values) - 1
        point = _T[freedom - 1] if freedom <= len(_T) else 1.96
        return cls(fmean(values), point * stdev(values) / math.sqrt(len(values)))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if math.isinf(self.half) else f"{self.mean:.3f} ± {self.half:.3f}"


@dataclass(frozen=True, slots=True)
class Row:
    """What one arm gave and cost, over its seeds."""

    arm: str
    reward: Interval
    gain: Interval
    """Over the reference, paired."""
    kl: float
    regret: float
    """What the optimum of the same KL divergence has more."""
    rows: int
    seconds: float
    bytes: int
    parameters: int
    stability: str
    proxy: float | None
    values: tuple[float, ...]
    """What is paired when arms are compared: a value a prompt with one seed, a value a seed with several."""


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """An experiment's rows, best first among policies, and its frontier."""

    rows: tuple[Row, ...]
    frontier: Frontier
    """Over all prompts of all seeds' references."""
    seeds: int
    prompts: int

    def row(self, arm: str) -> Row:
        """The row of an arm."""
        return next(row for row in self.rows if row.arm == arm)

    def separated(self, first: str, second: str) -> bool:
        """Whether the paired difference of two arms' rewards is more than chance, at 95 %."""
        return difference(self.row(first), self.row(second)).excludes_zero

    @property
    def basis(self) -> str:
        """What the intervals are over."""
        if self.seeds > 1:
            return f"over {self.seeds} seeds"
        return f"over {self.prompts} prompts of one seed"


def difference(first: Row, second: Row) -> Interval:
    """The paired difference of two rewards."""
    return Interval.of([a - b for a, b in zip(first.values, second.values, strict=True)])


def frontiers(outcomes: Sequence[Outcome]) -> dict[int, Frontier]:
    """The exact frontier of each seed's reference."""
    return {
        outcome.seed: Frontier([Levels(np.array(one.rewards), np.array(one.masses)) for one in outcome.levels])
        for outcome in outcomes
        if outcome.arm == REFERENCE
    }


def summarise(experiment: Experiment, outcomes: Sequence[Outcome], best_of: int = 16) -> Summary:
    """Bring an experiment's outcomes together; a reward model adds a row for the best of so many samples."""
    optimal = frontiers(outcomes)
    arms = by_arm(outcomes)
    reference = _values([outcome.reward for outcome in arms[REFERENCE]])
    several = sum(arm.scores for arm in experiment.arms) > 1
    rows = []
    for name in (BASE, *(arm.name for arm in experiment.arms)):
        found = arms[name]
        if found[0].reward:
            rows.append(_row(name, found, optimal, reference))
        else:
            own = f"best of {best_of}" + (f", {name}" if several else "")
            rows.append(_best_of_row(own, found, best_of, optimal, reference))
    whole = Frontier([levels for frontier in optimal.values() for levels in frontier.prompts])
    return Summary(tuple(rows), whole, len(experiment.seeds), experiment.prompts)


def _row(name: str, found: Sequence[Outcome], optimal: dict[int, Frontier], reference: Sequence[float]) -> Row:
    rewards, kls = [outcome.reward for outcome in found], [outcome.kl for outcome in found]
    proxies = [outcome.figures["proxy/proxy"] for outcome in found if "proxy/proxy" in outcome.figures]
    return _made(name, found, rewards, kls, optimal, reference, _stability(found), fmean(proxies) if proxies else None)


def _best_of_row(
    name: str, found: Sequence[Outcome], count: int, optimal: dict[int, Frontier], reference: Sequence[float]
) -> Row:
    points = [next(one for one in outcome.best_of if one.count == count) for outcome in found]
    proxy = fmean(fmean(point.proxy) for point in points)
    rewards, kls = [point.reward for point in points], [point.kl for point in points]
    return _made(name, found, rewards, kls, optimal, reference, "nothing is trained but the reward model", proxy)


def _made(
    name: str,
    found: Sequence[Outcome],
    rewards: Sequence[Sequence[float]],
    kls: Sequence[Sequence[float]],
    optimal: dict[int, Frontier],
    reference: Sequence[float],
    stability: str,
    proxy: float | None,
) -> Row:
    values = _values(rewards)
    points = [Point(fmean(reward), fmean(kl)) for reward, kl in zip(rewards, kls, strict=True)]
    return Row(
        arm=name,
        reward=Interval.of(values),
        gain=Interval.of([value - start for value, start in zip(values, reference, strict=True)]),
        kl=fmean(point.kl for point in points),
        regret=fmean(optimal[outcome.seed].regret(point) for outcome, point in zip(found, points, strict=True)),
        rows=round(fmean(outcome.rows for outcome in found)),
        seconds=fmean(outcome.seconds for outcome in found),
        bytes=max(outcome.bytes for outcome in found),
        parameters=found[0].parameters,
        stability=stability,
        proxy=proxy,
        values=tuple(values),
    )


def _values(rewards: Sequence[Sequence[float]]) -> list[float]:
    """A value a seed where there are several, else a value a prompt."""
    return [fmean(own) for own in rewards] if len(rewards) > 1 else list(rewards[0])


def _stability(found: Sequence[Outcome]) -> str:
    """What went wrong while training, in a few words."""
    skipped, spikes = (sum(getattr(outcome, name) for outcome in found) for name in ("skipped", "spikes"))
    falls = sum(_fell(outcome) for outcome in found)
    told = [
        *([f"{skipped} steps not finite"] if skipped else []),
        *([f"{spikes} gradient spikes"] if spikes else []),
        *([f"truth fell in {falls} of {len(found)}" if len(found) > 1 else "the truth fell"] if falls else []),
    ]
    return ", ".join(told) or "steady"


def _fell(outcome: Outcome, least: float = 0.02) -> bool:
    """Whether the true reward at the end lies clearly below what it was on the way."""
    seen = [look.reward for look in outcome.looks]
    return bool(seen) and max(seen) - seen[-1] > least
