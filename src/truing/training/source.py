"""Where a trainer's steps come from: rows in a planned order, packed, with their columns filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from truing.core.batch import Batch, Totals
from truing.core.trees import Tree
from truing.data.packing import Step, StepPlan
from truing.training.dealing import ALL_OF_IT, Dealer

T = TypeVar("T")

Annotate = Callable[[Batch], Batch]
"""Fills columns that need no gradient, such as reference log-probs."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedStep:
    """Everything one optimizer step computes on."""

    index: int
    batches: tuple[Batch, ...]
    totals: Totals
    rows_done: int
    """Rows consumed by the run when this step is done."""
    tokens: int
    """Tokens computed in it, by all ranks."""
    fillers: tuple[Batch, ...] = ()
    """What this rank computes only because others still do; it counts nothing."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures that were known before the step, such as a rollout's."""
    silent: bool = False
    """Whether it is known that there is nothing to learn in it."""


class Source(Protocol):
    """A run's steps; asked for those from `start` on, it gives the same ones as if it had given all before."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        ...

    def steps(self, start: int) -> Iterator[PreparedStep]:
        """Yield the steps from number `start` on; it may end before `total_steps` and then has said why."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what it needs besides the number of steps done, as tensors and as values that JSON can hold."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        ...

    def close(self) -> None:
        """Let go of processes."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TreeSource:
    """Steps from a fixed set of trees."""

    trees: Sequence[Tree]
    plan: StepPlan
    collate: Callable[[Sequence[Tree]], Batch]
    """Lays trees out on the CPU."""
    annotate: Annotate
    device: torch.device
    total_steps: int
    dealer: Dealer = ALL_OF_IT

    def steps(self, start: int) -> Iterator[PreparedStep]:
        plans = self.plan.steps(start)
        laid = one_ahead(map(self._pinned, plans)) if self.device.type == "cuda" else map(self._bare, plans)
        for step, own, fillers in laid:
            totals = self.dealer.ranks.total(Totals.of(own))
            batches, filling = (
                tuple(self.annotate(batch.to(self.device)) for batch in part) for part in (own, fillers)
            )
            tokens = sum(self.plan.sizes[row] for micro in step.micro_batches for row in micro)
            yield PreparedStep(step.index, batches, totals, step.first + step.rows, tokens, filling)

    def _bare(self, step: Step) -> tuple[Step, tuple[Batch, ...], tuple[Batch, ...]]:
        """A step, what this rank computes of it, and what it computes only to fill."""
        own, fillers = self._share(step)
        return step, self._laid_out(own), self._laid_out(fillers)

    def _pinned(self, step: Step) -> tuple[Step, tuple[Batch, ...], tuple[Batch, ...]]:
        """Lay a step out where a GPU fetches it by itself, without making the program wait."""
        _, own, fillers = self._bare(step)
        return step, tuple(batch.pinned() for batch in own), tuple(batch.pinned() for batch in fillers)

    def _laid_out(self, micros: Sequence[Sequence[int]]) -> tuple[Batch, ...]:
        return tuple(self.collate([self.trees[row] for row in micro]) for micro in micros)

    def _share(self, step: Step) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]:
        """Rows of each micro-batch that this rank computes, and of each that it computes only to fill."""
        if not self.dealer.ranks.several:
            return step.micro_batches, ()
        rows = sorted(row for micro in step.micro_batches for row in micro)
        hand = self.dealer.hand([self.plan.sizes[row] for row in rows], self.plan.micro_tokens)
        return [[rows[i] for i in micro] for micro in hand.bins], [[rows[i] for i in micro] for micro in hand.fillers]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Nothing: the steps follow from their number."""

    def close(self) -> None:
        """Nothing to let go of."""

    def first_pass(self) -> Iterator[Batch]:
        """Yield this rank's bare batches of the first pass over the data, packed as training will pack them."""
        for step in self.plan.steps():
            own, missing = self._share(step)
            for micro in (*own, *missing):
                yield self.collate([self.trees[row] for row in micro]).to(self.device)
            if step.first + step.rows >= len(self.trees):
                return


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as worker:
        following = worker.submit(next, items, None)
        while (item := following.result()) is not None:
            following = worker.submit(next, items, None)
            yield item


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """Batches that are looked at again and again, such as held-out rows: this rank's part of them."""

    batches: tuple[Batch, ...]
    fillers: tuple[Batch, ...] = ()

    @property
    def all(self) -> tuple[Batch, ...]:
        """Both, in the order in which they are computed."""
        return (*self.batches, *self.fillers)


def fixed_batches(
    trees: Sequence[Tree],
    sizes: Sequence[int],
    micro_tokens: int,
    collate: Callable[[Sequence[Tree]], Batch],
    device: torch.device,
    dealer: Dealer = ALL_OF_IT,
) -> Fixed:
    """Pack trees once and for all."""
    hand = dealer.hand(sizes, micro_tokens)
    made = tuple(collate([trees[i] for i in group]).to(device) for group in (*hand.bins, *hand.fillers))
    return Fixed(made[: len(hand.bins)], made[len(hand.bins) :])
