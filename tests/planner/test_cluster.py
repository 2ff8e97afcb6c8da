"""Laws of collectives over rings of devices."""

from __future__ import annotations

import pytest

from truing.core.errors import InputError
from truing.planner.catalog import catalog
from truing.planner.cluster import HOP, HOP_BETWEEN_NODES, START, Cluster, Ring, bandwidth, cluster_of
from truing.planner.machine import named_card

H100 = named_card("h100")


def cluster(nodes: int = 4, per_node: int = 8, link: str = "400GB/s", network: str = "80GB/s") -> Cluster:
    return cluster_of(H100, nodes, per_node, link, network)


def test_a_gathering_moves_all_parts_but_ones_own() -> None:
    """By hand: of 8 GB in 8 parts each device receives 7, at 400 GB/s, after 7 hops."""
    ring = Ring(cluster(1), 8)
    assert ring.gather(8e9) == pytest.approx(START + 7 * HOP + 7e9 / 400e9)
    assert ring.sent(8e9) == 7e9


def test_a_sum_for_everyone_is_a_scattered_one_and_a_gathering() -> None:
    ring = Ring(cluster(1), 8)
    assert ring.reduce(8e9) - START == pytest.approx(2 * (ring.gather(8e9) - START))


def test_one_device_sends_nothing() -> None:
    assert Ring(cluster(), 1).gather(1e9) == Ring(cluster(), 1).reduce(1e9) == Ring(cluster(), 1).sent(1e9) == 0


def test_a_ring_through_nodes_is_as_fast_as_their_network() -> None:
    """By hand: over 2 nodes a ring leaves each once, so that it has the node's 80 GB/s to itself."""
    ring = Ring(cluster(), 16)
    assert ring.nodes == 2
    assert ring.gather(16e9) == pytest.approx(START + 14 * HOP + HOP_BETWEEN_NODES + 15e9 / 80e9)


def test_rings_through_the_same_nodes_share_their_network() -> None:
    """Copies over 8 devices of a node each: 8 rings between the nodes at once, a tenth of 80 GB/s each."""
    assert Ring(cluster(), 4, 8).bandwidth == pytest.approx(10e9)
    assert Ring(cluster(), 8, 4).bandwidth == pytest.approx(20e9), "two members of a ring in each node"


def test_what_is_not_given_is_what_the_cards_are_sold_with() -> None:
    found = cluster_of(H100, 2, 8, None, None)
    assert (found.link, found.network) == (pytest.approx(370.8e9), pytest.approx(8 * 48e9))
    assert cluster_of(named_card("l40s"), 2, 4, None, None).network == pytest.approx(12e9)
    assert cluster_of(H100, 2, 8, None, "ethernet-25g").network == pytest.approx(3e9)


@pytest.mark.parametrize("text", ["50", "GB/s", "0GB/s", "-1GB/s", "50 parsecs"])
def test_a_bandwidth_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="50GB/s"):
        bandwidth(text, "--link")


def test_a_size_has_no_link_and_is_asked_for_one() -> None:
    with pytest.raises(InputError, match="--link"):
        cluster_of(named_card("80GB"), 2, 8, None, None)


def test_every_figure_names_a_source_that_is_listed() -> None:
    known = catalog()
    named = [*known.cards.values(), *known.shares.values(), *known.networks.values()]
    assert {each.source for each in named} <= set(known.sources)
    assert set(known.usual) | set(known.shares) <= set(known.cards)
    assert set(known.usual.values()) <= set(known.networks)
