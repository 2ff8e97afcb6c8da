"""How the trees of a step are shared out to ranks: pure functions of sizes, so that all ranks find the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from truing.data.packing import pack
from truing.training.ranks import ALONE, Ranks

Bins = list[list[int]]
"""Micro-batches of items, by their numbers."""


def deal(sizes: Sequence[int], world: int) -> list[list[int]]:
    """Give items to ranks so that their tokens are even: largest first, each to the rank that has least.

    Ranks keep the items in their order. The fullest has at most 4/3 of what is possible (Graham 1969).

    >>> deal([5, 1, 4, 2], 2)
    [[0, 1], [2, 3]]
    """
    hands: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = min(range(world), key=lambda r: (loads[r], r))
        hands[rank].append(item)
        loads[rank] += sizes[item]
    return [sorted(hand) for hand in hands]


def deal_packed(sizes: Sequence[int], capacity: int, world: int) -> list[list[list[int]]]:
    """Give items to ranks, and pack each rank's into micro-batches of `capacity` tokens: rank → bins → items."""
    hands = deal(sizes, world)
    return [[[hand[i] for i in group] for group in pack([sizes[item] for item in hand], capacity)] for hand in hands]


@dataclass(frozen=True, slots=True)
class Hand:
    """What one rank computes of a step."""

    bins: Bins
    fillers: Bins
    """Micro-batches that count nothing: passes that it makes because others still make theirs."""


@dataclass(frozen=True, slots=True)
class Dealer:
    """Gives this rank its part of the work that all ranks know of."""

    ranks: Ranks = ALONE
    lockstep: bool = False
    """Whether all ranks have to make the same number of passes, because they share a copy of the weights."""

    def hand(self, sizes: Sequence[int], capacity: int) -> Hand:
        """Pack this rank's part of items of so many tokens."""
        hands = deal_packed(sizes, capacity, self.ranks.world)
        own = hands[self.ranks.rank]
        return Hand(own, self._fillers(max(len(bins) for bins in hands) - len(own), sizes))

    def hand_of_bins(self, sizes: Sequence[int]) -> Hand:
        """Choose this rank's part of micro-batches of so many tokens that are packed already."""
        hands = deal(sizes, self.ranks.world)
        own = hands[self.ranks.rank]
        missing = self._fillers(max(len(hand) for hand in hands) - len(own), sizes)
        return Hand([[item] for item in own], missing)

    def _fillers(self, missing: int, sizes: Sequence[int]) -> Bins:
        smallest = min(range(len(sizes)), key=lambda item: (sizes[item], item), default=0)
        return [[smallest]] * (missing if self.lockstep else 0)


ALL_OF_IT = Dealer()
"""For a rank that is alone."""
