"""What the measurements say: each figure of each result with its interval, and which differences are separated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from truing.evaluate.held_out import Likelihoods, Measured, Pairs, Written
from truing.evaluate.intervals import LEVEL, Doubles, Estimate, Ints, Resamples, numbered, sums_by_cluster
from truing.evaluate.winrate import length_controlled, mean, outcomes

Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that is measured of every result."""

    key: str
    title: str
    unit: str
    better: Better | None
    """Which end is good; None where neither is by itself."""
    percent: bool = False
    digits: int = 3

    def number(self, value: float) -> str:
        """A value as a person reads it, in per cent where it is a share.

        >>> ACCURACY.number(0.625), LOSS.number(-0.1234), LOSS.number(-1e-9)
        ('62.5', '−0.123', '0.000')
        """
        shown = f"{100 * value:.1f}" if self.percent else f"{value:.{self.digits}f}"
        return shown.replace("-", "−" if float(shown) else "")

    def shown(self, value: float) -> str:
        """The same with its sign of per cent."""
        return f"{self.number(value)} %" if self.percent else self.number(value)


LOSS = Figure("loss", "held-out loss", "nats a token", "lower")
ACCURACY = Figure("accuracy", "prefers chosen", "of comparisons", "higher", percent=True)
ACCURACY_PER_TOKEN = Figure("accuracy_per_token", "prefers chosen, per token", "of comparisons", "higher", percent=True)
WINS = Figure("win_rate", "win-rate", "against the start", "higher", percent=True)
WINS_AT_LENGTH = Figure(
    "win_rate_at_equal_length", "win-rate at equal length", "against the start", "higher", percent=True
)
LENGTH = Figure("length", "length", "tokens a completion", None, digits=1)
KL = Figure("kl", "KL to the start", "nats a completion", None, digits=2)
FORGETTING = Figure("forgetting", "forgetting", "change of loss on general text, nats a token", "lower")
FIGURES = (LOSS, ACCURACY, ACCURACY_PER_TOKEN, WINS, WINS_AT_LENGTH, LENGTH, KL, FORGETTING)


@dataclass(frozen=True, slots=True)
class Difference:
    """A result less the best one, paired."""

    value: float
    low: float
    high: float
    separated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """One figure over all results."""

    figure: Figure
    estimates: Mapping[str, Estimate]
    best: str | None
    """By its value alone, whether or not it is separated from others; None where nobody can be the best."""
    differences: Mapping[str, Difference]
    """Of the others from the best."""
    level: float
    """Of the intervals of the differences, so that all of them hold together with 95 %."""

    @property
    def clusters(self) -> int:
        """Prompts, or general texts, that it was measured on."""
        return next(iter(self.estimates.values())).clusters

    @property
    def tied(self) -> tuple[str, ...]:
        """Results that are not separated from the best."""
        return tuple(name for name, found in self.differences.items() if not found.separated)

    @property
    def behind(self) -> tuple[str, ...]:
        """Results that are separated from it."""
        return tuple(name for name, found in self.differences.items() if found.separated)


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """The measurements of all results: one of the start, one a seed of the others."""

    results: Mapping[str, Sequence[Measured]]
    start: str
    groups: Mapping[str, Sequence[int]]
    """The number of the prompt of each held-out row, by the kind of row."""

    @property
    def seeds(self) -> int:
        return max(len(found) for found in self.results.values())


def standings(field: Field) -> tuple[Standing, ...]:
    """Every figure that could be measured."""
    measures: dict[Figure, Callable[[Field], dict[str, Estimate]]] = {
        LOSS: _losses,
        ACCURACY: lambda field: _accuracies(field, per_token=False),
        ACCURACY_PER_TOKEN: lambda field: _accuracies(field, per_token=True),
        WINS: lambda field: _wins(field, at_equal_length=False),
        WINS_AT_LENGTH: lambda field: _wins(field, at_equal_length=True),
        LENGTH: lambda field: _of_written(field, lambda one: float(one.tokens)),
        KL: lambda field: _of_written(field, lambda one: one.log_ratio),
        FORGETTING: _forgetting,
    }
    found = ((figure, measure(field)) for figure, measure in measures.items())
    return tuple(stand(figure, estimates) for figure, estimates in found if estimates)


def stand(figure: Figure, estimates: Mapping[str, Estimate]) -> Standing:
    """Name the best by value and compare the others with it, draw by draw.

    Of k results k − 1 are compared with the best, so each difference gets an interval of level 1 − 5 % / (k − 1)
    (Bonferroni): that none of them is called separated by chance holds for the figure as a whole.
    """
    others = len(estimates) - 1
    level = 1 - (1 - LEVEL) / max(1, others)
    if figure.better is None or others < 1:
        return Standing(figure, estimates, None, {}, level)
    sign = 1.0 if figure.better == "higher" else -1.0
    best = max(estimates, key=lambda name: sign * estimates[name].value)
    differences = {}
    for name, estimate in estimates.items():
        if name != best:
            apart = estimate.minus(estimates[best])
            differences[name] = Difference(apart.value, *apart.interval(level), apart.excludes(0.0, level))
    return Standing(figure, estimates, best, differences, level)


def _losses(field: Field) -> dict[str, Estimate]:
    found = {name: [one.answers for one in each] for name, each in field.results.items()}
    return _per_token({name: [one for one in each if one is not None] for name, each in found.items()}, field)


def _per_token(found: Mapping[str, Sequence[Likelihoods]], field: Field) -> dict[str, Estimate]:
    """−Σ log p / Σ tokens over all rows."""
    found = {name: each for name, each in found.items() if each}
    if not found:
        return {}
    rows = next(iter(found.values()))[0].rows
    clusters, count = _clusters(field, "demonstration", rows)
    resamples = Resamples.draw(count, field.seeds)
    return {
        name: resamples.ratio(
            sums_by_cluster(-np.array([one.logprobs for one in each]), clusters, count),
            sums_by_cluster(np.array([one.tokens for one in each], dtype=np.float64), clusters, count),
        )
        for name, each in found.items()
    }


def _accuracies(field: Field, *, per_token: bool) -> dict[str, Estimate]:
    found = {name: [one.pairs for one in each if one.pairs is not None] for name, each in field.results.items()}
    found = {name: each for name, each in found.items() if each and not (per_token and each[0].by_score)}
    if not found:
        return {}
    clusters, count = _clusters(field, "comparison", next(iter(found.values()))[0].rows)
    resamples = Resamples.draw(count, field.seeds)
    right = {name: np.stack([_right(one, per_token) for one in each]) for name, each in found.items()}
    return {name: mean(each, clusters, resamples) for name, each in right.items()}


def _right(pairs: Pairs, per_token: bool) -> Doubles:
    chosen, rejected = np.array(pairs.chosen), np.array(pairs.rejected)
    if per_token:
        chosen, rejected = chosen / np.array(pairs.chosen_tokens), rejected / np.array(pairs.rejected_tokens)
    return outcomes(chosen, rejected)


def _of_written(field: Field, value: Callable[[Written], float]) -> dict[str, Estimate]:
    written = _written(field)
    if not written:
        return {}
    clusters, resamples = _written_clusters(field, written)
    values = {name: _values(each, value) for name, each in written.items()}
    return {name: mean(each, clusters, resamples) for name, each in values.items()}


def _wins(field: Field, *, at_equal_length: bool) -> dict[str, Estimate]:
    """Against the start's completion of the same prompt and number."""
    written = _written(field)
    if not written or any(one.score is None for each in written.values() for own in each for one in own):
        return {}
    clusters, resamples = _written_clusters(field, written)
    before = _values(written[field.start], lambda one: one.score or 0.0)
    length = _values(written[field.start], lambda one: float(one.tokens))
    found = {}
    for name, each in written.items():
        wins = outcomes(_values(each, lambda one: one.score or 0.0), before)
        if not at_equal_length:
            found[name] = mean(wins, clusters, resamples)
            continue
        longer = _values(each, lambda one: float(one.tokens)) - length
        seeds = resamples.seeds.shape[1]
        wins, longer = (np.broadcast_to(part, (seeds, part.shape[1])) for part in (wins, longer))
        found[name] = length_controlled(wins, longer, clusters, resamples)
    return found


def _forgetting(field: Field) -> dict[str, Estimate]:
    """The loss on general text less the start's; each text is a cluster."""
    found = {name: [one.general for one in each if one.general is not None] for name, each in field.results.items()}
    found = {name: each for name, each in found.items() if each}
    if field.start not in found:
        return {}
    count = len(found[field.start][0].rows)
    resamples = Resamples.draw(count, field.seeds)
    losses = {
        name: resamples.ratio(-np.array([one.logprobs for one in each]), np.array([one.tokens for one in each], float))
        for name, each in found.items()
    }
    return {name: one.minus(losses[field.start]) for name, one in losses.items()}


def _written(field: Field) -> dict[str, list[tuple[Written, ...]]]:
    found = {name: [one.written for one in each if one.written is not None] for name, each in field.results.items()}
    return {name: each for name, each in found.items() if each}


def _written_clusters(field: Field, written: Mapping[str, Sequence[tuple[Written, ...]]]) -> tuple[Ints, Resamples]:
    clusters, count = _clusters(field, "prompt", [one.row for one in written[field.start][0]])
    return clusters, Resamples.draw(count, field.seeds)


def _clusters(field: Field, kind: str, rows: Sequence[int]) -> tuple[Ints, int]:
    """The number of each row's prompt, and how many prompts there are; rows count from 1."""
    return numbered(np.array([field.groups[kind][row - 1] for row in rows]))


def _values(each: Sequence[tuple[Written, ...]], value: Callable[[Written], float]) -> Doubles:
    """float64 [S, N]."""
    return np.array([[value(one) for one in own] for own in each], dtype=np.float64)
