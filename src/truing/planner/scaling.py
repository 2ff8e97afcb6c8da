"""Every sensible way to lay a model over several devices, and how many of them pay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from truing.core.errors import InputError
from truing.planner.architecture import Architecture
from truing.planner.cluster import Cluster
from truing.planner.cost import cost_of
from truing.planner.memory import Memory, predict
from truing.planner.plan import LEAST_TOKENS, MOST_TOKENS
from truing.planner.request import Answer, Deal
from truing.planner.setting import Setting, Work
from truing.planner.sharding import Layout, Traffic, rank_memory, traffic_of

MOST_NODES = 1024
"""Looked at for the point from which on nodes do not pay."""


@dataclass(frozen=True, slots=True)
class Laid:
    """A layout with what it needs and does."""

    layout: Layout
    setting: Setting
    cluster: Cluster
    memory: Memory
    """Of the busiest device."""
    traffic: Traffic
    computing: float
    """Seconds of a step in which the busiest device computes."""
    rows: int
    """Of a step, on all devices."""
    tokens: float
    """Of those rows."""

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.cluster.machine.memory

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.computing + self.traffic.waited

    @property
    def speed(self) -> float:
        """Tokens of rows a second, of all devices: a prompt that is computed again counts once."""
        return self.tokens / self.seconds

    @property
    def speed_each(self) -> float:
        """Tokens a second of a device."""
        return self.speed / self.layout.world

    def as_json(self) -> dict[str, Any]:
        """What `truing plan --json` holds of it."""
        return {
            "nodes": self.cluster.nodes,
            "gpus": self.cluster.world,
            "copies": self.layout.copies,
            "shards": self.layout.shards,
            "micro_tokens": self.setting.micro_tokens,
            "gradient_checkpointing": self.setting.checkpointing,
            "bytes": dict(self.memory.terms),
            "total_bytes": self.memory.total,
            "moment": self.memory.moment,
            "fits": self.fits,
            "sent_bytes": {name: round(value) for name, value in self.traffic.sent.items()},
            "seconds": _rounded(self.seconds),
            "seconds_computing": _rounded(self.computing),
            "seconds_communicating": _rounded(self.traffic.seconds),
            "seconds_waiting": _rounded(self.traffic.waited),
            "tokens_per_second": round(self.speed),
            "tokens_per_second_each": round(self.speed_each),
        }


@dataclass(frozen=True, slots=True)
class Scaling:
    """A model on a cluster."""

    model: Architecture
    cluster: Cluster
    setting: Setting
    rows: str
    examples: int
    """Rows of a step, on all devices."""
    laid: tuple[Laid, ...]
    """The layouts that fit, the fastest first; where none does, those that need the least."""
    sizes: tuple[Laid, ...]
    """The fastest on fewer and on more devices, the same step on each; those that fit."""
    floor: float
    """Share of the best speed of a device below which more of them do not pay."""

    @property
    def pays(self) -> Laid | None:
        """The most devices of which each is still fast enough."""
        best = max((laid.speed_each for laid in self.sizes), default=0.0)
        paying = [laid for laid in self.sizes if laid.speed_each >= self.floor * best]
        return paying[-1] if paying else None

    def efficiency(self, laid: Laid) -> float:
        """A device's speed as a share of the best that one of them has on any number."""
        return laid.speed_each / max(one.speed_each for one in self.sizes)

    def as_json(self) -> dict[str, Any]:
        """What `truing plan --json` prints."""
        pays = self.pays
        return {
            "examples": self.examples,
            "link_bytes_per_second": self.cluster.link,
            "network_bytes_per_second": None if self.cluster.nodes == 1 else self.cluster.network,
            "layouts": [laid.as_json() for laid in self.laid],
            "sizes": [{**laid.as_json(), "efficiency": round(self.efficiency(laid), 3)} for laid in self.sizes],
            "pays_up_to_gpus": None if pays is None else pays.layout.world,
        }


@dataclass(frozen=True, slots=True)
class _Step:
    """What all devices compute together."""

    model: Architecture
    setting: Setting
    deal: Deal
    rows: int
    tokens: float


def scale(answer: Answer, cluster: Cluster, floor: float, examples: int | None) -> Scaling:
    """Look at every layout; `examples` is the step's rows where they were asked for, else every device is filled once.

    Raises InputError where nothing is known of how fast the devices are.
    """
    plan, deal = answer.plan, cache(answer.deal)
    if cluster.machine.rates is None:
        raise InputError(
            f"--gpu {cluster.machine.name}: how fast it is is not known; give a card by name, such as h100"
        )
    rows = examples if examples is not None else _filling(plan.setting, deal, cluster.world)
    step = _Step(plan.model, plan.setting, deal, rows, deal(MOST_TOKENS, 1).tokens * rows)
    laid = sorted(_layouts(step, cluster), key=lambda one: one.seconds)
    fitting = tuple(one for one in laid if one.fits)
    least = tuple(sorted(laid, key=lambda one: one.memory.total)[:1])
    sizes = tuple(_sizes(step, cluster, floor))
    return Scaling(plan.model, cluster, plan.setting, answer.rows, rows, fitting or least, sizes, floor)


def _filling(setting: Setting, deal: Deal, world: int) -> int:
    """Rows that fill each device's micro-batch once."""
    row = max(1.0, deal(setting.micro_tokens, 1).tokens)
    return world * max(1, int(setting.micro_tokens // row))


def _layouts(step: _Step, cluster: Cluster) -> Iterator[Laid]:
    """Each way to cut the model, with and without checkpointing, and the most tokens at once that fit."""
    for shards in _shards(cluster):
        layout = Layout(cluster.world // shards, shards)
        for checkpointing in (False, True):
            setting = replace(step.setting, checkpointing=checkpointing)
            yield _largest(replace(step, setting=setting), cluster, layout)


def _shards(cluster: Cluster) -> Iterator[int]:
    """Parts that a copy is cut into: of devices of one node, or of whole nodes."""
    yield from (shards for shards in range(1, cluster.per_node + 1) if cluster.per_node % shards == 0)
    yield from (nodes * cluster.per_node for nodes in range(2, cluster.nodes + 1) if cluster.nodes % nodes == 0)


def _largest(step: _Step, cluster: Cluster, layout: Layout) -> Laid:
    """The most tokens at once that fit, or the fewest where nothing does."""
    share = -(-step.rows // layout.world)
    tokens, best = LEAST_TOKENS, None
    while True:
        work = step.deal(tokens, share)
        laid = _lay(step, tokens, cluster, layout, work)
        if best is not None and not laid.fits:
            return best
        best = laid
        if not laid.fits or work.micros == 1 or tokens >= MOST_TOKENS:
            return best
        tokens *= 2


def _lay(step: _Step, micro_tokens: int, cluster: Cluster, layout: Layout, work: Work) -> Laid:
    model, setting = step.model, replace(step.setting, micro_tokens=micro_tokens)
    cost = cost_of(model, setting, work, cluster.machine.rates)
    assert cost.seconds is not None
    memory, traffic = predict(model, setting, work), Traffic({}, 0.0, 0.0)
    if layout.world > 1:
        memory = rank_memory(model, setting, layout, work)
        traffic = traffic_of(model, setting, layout, cluster, cost, work)
    computing = cost.seconds / max(cost.steps, 1)
    return Laid(layout, setting, cluster, memory, traffic, computing, step.rows, step.tokens)


def _sizes(step: _Step, cluster: Cluster, floor: float) -> Iterator[Laid]:
    """The fastest layout on one device, on two, …, a node, two nodes, …, as far as they pay and have a row each."""
    best = 0.0
    for nodes, each in _counts(cluster):
        if nodes * each > step.rows:
            return
        fitting = [one for one in _layouts(step, replace(cluster, nodes=nodes, per_node=each)) if one.fits]
        if not fitting:
            continue
        laid = min(fitting, key=lambda one: one.seconds)
        yield laid
        best = max(best, laid.speed_each)
        if laid.speed_each < floor * best and nodes >= cluster.nodes:
            return


def _counts(cluster: Cluster) -> Iterator[tuple[int, int]]:
    """Nodes, and devices of each: powers of two, and what was asked about."""
    within = {1 << power for power in range(cluster.per_node.bit_length()) if 1 << power < cluster.per_node}
    yield from ((1, each) for each in sorted(within | {cluster.per_node}))
    if cluster.network == float("inf"):
        return
    nodes = {1 << power for power in range(1, MOST_NODES.bit_length())} | {cluster.nodes}
    yield from ((count, cluster.per_node) for count in sorted(nodes) if count > 1)


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
