"""How work is shared out: pure functions, so that all ranks find the same."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from truing.core.reduce import Metric
from truing.training.dealing import Dealer, deal, deal_packed
from truing.training.process_group import joined
from truing.training.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class OneOf(Ranks):
    """A rank whose others say the same as it."""

    def everyone(self, value: Any) -> list[Any]:
        return [value] * self.world


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 6))
def test_every_item_is_dealt_once_and_no_hand_is_much_fuller_than_another(sizes: list[int], world: int) -> None:
    hands = deal(sizes, world)
    assert sorted(item for hand in hands for item in hand) == list(range(len(sizes)))
    loads = [sum(sizes[item] for item in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(sizes, default=0), "each went to the rank that had least"


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 6), st.integers(1, 150))
def test_ranks_in_lockstep_make_as_many_passes_as_each_other(sizes: list[int], world: int, capacity: int) -> None:
    hands = [Dealer(OneOf(rank, world), lockstep=True).hand(sizes, capacity) for rank in range(world)]
    assert len({len(hand.bins) + len(hand.fillers) for hand in hands}) == 1
    assert sorted(item for hand in hands for bins in hand.bins for item in bins) == list(range(len(sizes)))
    assert all(sizes[item] == min(sizes) for hand in hands for (item,) in hand.fillers)


def test_ranks_with_copies_of_the_weights_fill_nothing() -> None:
    hands = [Dealer(OneOf(rank, 3)).hand([5, 5], 10) for rank in range(3)]
    assert [hand.bins for hand in hands] == [[[0]], [[1]], []]
    assert all(hand.fillers == [] for hand in hands)


def test_a_rank_that_is_alone_packs_all_as_ever() -> None:
    assert deal_packed([6, 3, 4, 2], 7, 1) == [[[0], [1, 2], [3]]]


def test_means_of_ranks_are_over_all_that_was_counted() -> None:
    both = {"a": Metric(torch.tensor(5.0), 2), "b": Metric(torch.tensor(1.0), 0)}
    parts = [{"a": Metric(torch.tensor(3.0), 2)}, both]
    assert ALONE.together(0.5, parts) == (0.5, {"a": 2.0})
    assert OneOf(0, 3).together(0.5, parts) == (1.5, {"a": 2.0})
    assert ALONE.together(0.0, []) == (0.0, {})


def test_without_a_launcher_there_are_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(os.environ, "WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert ranks is ALONE
