"""Nodes of devices, and how long a collective takes over some of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from truing.core.errors import InputError, suggest
from truing.planner.catalog import catalog
from truing.planner.machine import Machine, card_word

START = 8.4e-6
"""Seconds that a collective takes before its first byte; this and the next are NCCL's own figures for rings that move
large messages (NCCL 2.18, src/graph/tuning.cc)."""

HOP, HOP_BY_PCIE, HOP_BETWEEN_NODES = 3.4e-6, 5.7e-6, 14e-6
"""Seconds for each further member of a ring: over NVLink, over PCIe, and over a network."""

UNITS = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kbit": 125.0, "mbit": 125e3, "gbit": 125e6}
"""Bandwidths are decimal."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal nodes of equal devices."""

    machine: Machine
    nodes: int
    per_node: int
    """Devices of a node."""
    link: float
    """Bytes a second that a collective reaches each way between devices of a node."""
    network: float
    """Bytes a second that a node reaches each way to the others."""
    hop: float = HOP
    """Seconds for each further member of a ring inside a node."""

    @property
    def world(self) -> int:
        """All devices."""
        return self.nodes * self.per_node

    @property
    def hides(self) -> bool:
        """Whether communication goes on beside computation; processes on a CPU do both with the same cores."""
        return self.machine.device == "cuda"


@dataclass(frozen=True, slots=True)
class Ring:
    """Devices that a collective is over: every `stride`-th one, `size` of them."""

    cluster: Cluster
    size: int
    stride: int = 1

    @property
    def nodes(self) -> int:
        """That it goes through."""
        return max(1, -(-self.size * self.stride // self.cluster.per_node))

    @property
    def bandwidth(self) -> float:
        """Bytes a second; rings through the same nodes share their network."""
        cluster = self.cluster
        if self.nodes == 1:
            return cluster.link
        members = max(1, self.size // self.nodes)
        return min(cluster.link, cluster.network * members / cluster.per_node)

    def gather(self, payload: float) -> float:
        """Seconds until every device has all parts of so many bytes, or the sum of its own part of them."""
        return self._seconds(payload, 1)

    def reduce(self, payload: float) -> float:
        """Seconds until every device has the sum of so many bytes."""
        return self._seconds(payload, 2)

    def sent(self, payload: float) -> float:
        """Bytes that each device sends in a gathering."""
        return payload * (self.size - 1) / self.size

    def _seconds(self, payload: float, rounds: int) -> float:
        if self.size == 1 or payload == 0:
            return 0.0
        within, between = self.size - self.nodes, self.nodes - 1
        steps = rounds * (within * self.cluster.hop + between * HOP_BETWEEN_NODES)
        return START + steps + rounds * self.sent(payload) / self.bandwidth


def cluster_of(machine: Machine, nodes: int, per_node: int, link: str | None, network: str | None) -> Cluster:
    """Put nodes together; what is not given is what the card's maker sells them with."""
    inside = bandwidth(link, "--link") if link is not None else machine.link
    if inside is None and per_node > 1:
        raise InputError(
            f"--gpu {machine.name}: how fast its devices reach each other is not known; give --link, as 24GB/s, "
            "or a card by name"
        )
    outside = float("inf") if nodes == 1 else _network(machine, per_node, network)
    card = catalog().cards.get(machine.name)
    hop = HOP_BY_PCIE if card is not None and card.linked.startswith("PCIe") else HOP
    return Cluster(machine, nodes, per_node, inside or outside, outside, hop)


def _network(machine: Machine, per_node: int, asked: str | None) -> float:
    """Bytes a second of a node: a network by name, a bandwidth, or what is usual."""
    known = catalog()
    name = card_word(asked) if asked is not None else known.usual.get(machine.name, "ethernet-100g")
    if name not in known.networks:
        return bandwidth(asked or "", "--network", f", or a network{suggest(name, known.networks)}")
    found = known.networks[name]
    return found.gigabytes * 1e9 * (per_node if found.per == "gpu" else 1)


def bandwidth(text: str, option: str, otherwise: str = "") -> float:
    """Read bytes a second.

    >>> bandwidth("50GB/s", "--link"), bandwidth("100 Gbit/s", "--link")
    (50000000000.0, 12500000000.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)(?:/s|ps)?", text.strip().lower())
    if found is None or found[2].removesuffix("ps") not in UNITS or float(found[1]) == 0:
        raise InputError(f"{option}: '{text}' is not a bandwidth; expected one such as 50GB/s or 100Gbit/s{otherwise}")
    return float(found[1]) * UNITS[found[2].removesuffix("ps")]
