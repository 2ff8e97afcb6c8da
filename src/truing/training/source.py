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
from truing.data.packing import Step, StepPlan, pack

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

    def steps(self, start: int) -> Iterator[PreparedStep]:
        plans = self.plan.steps(start)
        laid = one_ahead(map(self._pinned, plans)) if self.device.type == "cuda" else map(self._bare, plans)
        for step, bare in laid:
            totals = Totals.of(bare)
            batches = tuple(self.annotate(batch.to(self.device)) for batch in bare)
            yield PreparedStep(step.index, batches, totals, step.first + step.rows)

    def _bare(self, step: Step) -> tuple[Step, tuple[Batch, ...]]:
        return step, tuple(self.collate([self.trees[row] for row in micro]) for micro in step.micro_batches)

    def _pinned(self, step: Step) -> tuple[Step, tuple[Batch, ...]]:
        """Lay a step out where a GPU fetches it by itself, without making the program wait."""
        _, bare = self._bare(step)
        return step, tuple(batch.pinned() for batch in bare)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Nothing: the steps follow from their number."""

    def close(self) -> None:
        """Nothing to let go of."""

    def first_pass(self) -> Iterator[Batch]:
        """Yield the bare batches of the first pass over the data, packed as training will pack them."""
        for step in self.plan.steps():
            for micro in step.micro_batches:
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


def fixed_batches(
    trees: Sequence[Tree],
    sizes: Sequence[int],
    micro_tokens: int,
    collate: Callable[[Sequence[Tree]], Batch],
    device: torch.device,
) -> tuple[Batch, ...]:
    """Pack trees that are looked at again and again, such as held-out rows."""
    return tuple(collate([trees[i] for i in group]).to(device) for group in pack(sizes, micro_tokens))
