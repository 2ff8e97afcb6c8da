"""Who this process is among those that train one recipe, and what they tell each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor

from truing.core.batch import Totals
from truing.core.reduce import Metric, means, tally


@dataclass(frozen=True, slots=True)
class Ranks:
    """A process that trains by itself: every exchange gives back what it was given.

    With several, `process_group.Joined` does the exchanging. Each call is made by all ranks, in the same order.
    """

    rank: int = 0
    """Its number, from 0."""
    world: int = 1
    """How many there are."""
    local: int = 0
    """Its number on its machine, which is that of its GPU."""
    beside: int = 1
    """How many there are on its machine."""

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    def everyone(self, value: Any) -> list[Any]:
        """What each rank gave, in their order: values that JSON can hold."""
        return [value]

    def from_first(self, value: Any) -> Any:
        """What the first rank gave, a value that JSON can hold; the others' is not looked at."""
        return value

    def gathered(self, tensors: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        """The tensors that each rank gave, in their order, on the CPU; names and shapes may differ."""
        return [tensors]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of the same shapes on all ranks, by their sums over the ranks."""

    def barrier(self) -> None:
        """Wait for the others."""

    def total(self, totals: Totals) -> Totals:
        """The counts of all ranks together."""
        return Totals(*(sum(counts) for counts in zip(*self.everyone(list(astuple(totals))), strict=True)))

    def together(self, loss: float, metrics: Sequence[Mapping[str, Metric]]) -> tuple[float, dict[str, float]]:
        """The sum of the losses of all ranks, and the means of all their metrics."""
        everyone = self.everyone([loss, tally(metrics)])
        return sum(own for own, _ in everyone), means(own for _, own in everyone)


ALONE = Ranks()
"""The only process of a run."""
