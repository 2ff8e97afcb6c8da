"""Which rows make a step, and how a step's rows are cut into micro-batches: pure functions of sizes and a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: `micro_batches` of row indices; `first` counts the rows that came before it in the run."""

    index: int
    first: int
    micro_batches: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        return sum(len(micro) for micro in self.micro_batches)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The order of a whole run. Iterating it twice gives the same steps, so a run resumes by counting."""

    sizes: tuple[int, ...]
    """Tokens of each row."""
    examples: int | None
    """Rows in a step, or None when `tokens` decides."""
    tokens: int | None
    """Tokens in a step at most (one row at least)."""
    micro_tokens: int
    """Tokens in a micro-batch at most (one row at least)."""
    seed: int
    shuffle: bool
    max_steps: int | None
    epochs: float

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Yield the steps from number `start` on."""
        for index, first, rows in self._groups():
            if index >= start:
                packed = pack([self.sizes[row] for row in rows], self.micro_tokens)
                yield Step(index, first, tuple(tuple(rows[i] for i in group) for group in packed))

    def count(self) -> int:
        """Number of steps in the run."""
        return sum(1 for _ in self._groups())

    def rows_seen(self) -> int:
        """Rows consumed over the run, a row counted again in each epoch."""
        return sum(len(rows) for _, _, rows in self._groups())

    def _groups(self) -> Iterator[tuple[int, int, list[int]]]:
        """Yield (step, rows before it, rows): steps run on over the end of an epoch, so that no row is left out."""
        index = first = 0
        rows: list[int] = []
        load = 0
        for row in self._order():
            full = (
                len(rows) >= self.examples if self.examples is not None else load + self.sizes[row] > (self.tokens or 0)
            )
            if rows and full:
                yield index, first, rows
                index, first, rows, load = index + 1, first + len(rows), [], 0
                if self.max_steps is not None and index >= self.max_steps:
                    return
            rows.append(row)
            load += self.sizes[row]
        if rows:
            yield index, first, rows

    def _order(self) -> Iterator[int]:
        """Yield row indices epoch after epoch; without end when `max_steps` ends the run."""
        count = len(self.sizes)
        limit = None if self.max_steps is not None else max(1, round(self.epochs * count))
        epoch = seen = 0
        while limit is None or seen < limit:
            order = np.random.default_rng((self.seed, epoch)).permutation(count) if self.shuffle else np.arange(count)
            for row in order.tolist():
                if limit is not None and seen >= limit:
                    return
                yield row
                seen += 1
            epoch += 1


def pack(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into bins of `capacity` by first-fit decreasing; an item larger than that gets a bin of its own.

    Bins keep their items in the original order, and are ordered by their first item. First-fit decreasing needs at most
    11/9 of the optimal number of bins.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for b, free in enumerate(room):
            if sizes[item] <= free:
                bins[b].append(item)
                room[b] -= sizes[item]
                break
        else:
            bins.append([item])
            room.append(capacity - sizes[item])
    return sorted(sorted(b) for b in bins)
