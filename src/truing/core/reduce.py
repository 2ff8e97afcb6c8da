"""Sums over completions, and shares of a step: the arithmetic that keeps a step independent of how it is split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from truing.core.batch import Batch


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity to be averaged over a whole step: this micro-batch's sum, and how many things it sums over."""

    sum: Tensor  # float scalar, detached
    count: float


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A micro-batch's share of the step's loss. The step's loss is the plain sum of its shares."""

    loss: Tensor  # float32 scalar
    metrics: Mapping[str, Metric] = field(default_factory=dict)


def sum_by_completion(values: Tensor, batch: Batch) -> Tensor:
    """Sum a quantity of the target tokens over each completion: float [K] → float32 [C].

    Accumulates in float64: a completion's log-prob is in the hundreds, and preference losses look at small differences.
    """
    out = torch.zeros(batch.num_completions, dtype=torch.float64, device=values.device)
    return out.index_add(0, batch.target_completion, values.double()).to(torch.float32)


def sum_of_first(values: Tensor, batch: Batch, completions: Tensor, counts: Tensor) -> Tensor:
    """Sum a quantity over the first `counts` target tokens of some completions: float [K], int64 [N] → float32 [N].

    A count may exceed the completion's targets; then all of them are summed.
    """
    sizes = torch.tensor(batch.target_counts, dtype=torch.int64, device=values.device)
    ends = sizes.cumsum(0)
    running = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    start = (ends - sizes)[completions]
    return (running[start + torch.minimum(counts, sizes[completions])] - running[start]).to(torch.float32)


def completion_lengths(batch: Batch) -> Tensor:
    """Supervised tokens of each completion, at least 1: float32 [C]."""
    counts = torch.tensor(batch.target_counts, dtype=torch.float32, device=batch.targets.device)
    return counts.clamp_min(1.0)


def metric(values: Tensor) -> Metric:
    """The sum and count of a tensor's elements."""
    return Metric(values.detach().sum(dtype=torch.float64), float(values.numel()))


Tally = dict[str, tuple[float, float]]
"""Sum and count of each metric."""


def tally(shares: Iterable[Mapping[str, Metric]]) -> Tally:
    """Add up the metrics of several micro-batches."""
    found: Tally = {}
    for metrics in shares:
        for name, entry in metrics.items():
            before = found.get(name, (0.0, 0.0))
            found[name] = (before[0] + float(entry.sum), before[1] + entry.count)
    return found


def means(tallies: Iterable[Tally]) -> dict[str, float]:
    """Means over a step from the tallies of its parts; a metric with count 0 is left out."""
    whole: Tally = {}
    for part in tallies:
        for name, (value, count) in part.items():
            before = whole.get(name, (0.0, 0.0))
            whole[name] = (before[0] + value, before[1] + count)
    return {name: value / count for name, (value, count) in whole.items() if count > 0}


def average(shares: Iterable[Mapping[str, Metric]]) -> dict[str, float]:
    """Means over a step from the metrics of its micro-batches; a metric with count 0 is left out."""
    return means([tally(shares)])
