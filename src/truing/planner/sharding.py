"""What one of several devices holds and sends when a model is laid over them, a decoder layer at a time.

Weights, gradients and moments are cut into as many parts as a copy of the model has devices (FSDP2's `fully_shard`: a
unit for each layer, and one for embeddings and head). A unit is gathered before it is computed, the next one meanwhile;
the gradients of a unit are summed over the copy's devices as soon as they are there, then over the copies. Rollouts
have all weights whole. Where every device has a copy of its own, it trains as one that is alone, and gradients are
summed once a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from truing.planner.activations import WIDE
from truing.planner.architecture import Architecture
from truing.planner.cluster import Cluster, Ring
from truing.planner.cost import Amount, Cost
from truing.planner.memory import (
    ORDER,
    PROCESS,
    Memory,
    Pass,
    lasting_terms,
    moment_bytes,
    predict,
    rollout_terms,
    trained_numbers,
    weight_bytes,
)
from truing.planner.setting import Setting, Work

BUFFERS = 2 * 32 * 4 * 2**20
"""Bytes of a communicator: two neighbours, 32 channels, 4 MiB each (NCCL_BUFFSIZE in NCCL's documentation)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How devices share the work."""

    copies: int
    """Of the model; each learns from rows of its own."""
    shards: int
    """Devices that a copy is cut over."""

    @property
    def world(self) -> int:
        """All devices."""
        return self.copies * self.shards


@dataclass(frozen=True, slots=True)
class Units:
    """Bytes of what is gathered and summed at a time."""

    layers: int
    layer: float
    """Of a layer's weights, gathered; so is the next."""
    root: float
    """Of embeddings, head, last norm."""
    layer_gradient: float
    """Of a layer's gradients, summed in float32; so is the next."""
    root_gradient: float

    @property
    def weights(self) -> float:
        return self.layers * self.layer + self.root

    @property
    def gradients(self) -> float:
        return self.layers * self.layer_gradient + self.root_gradient


def units_of(model: Architecture, setting: Setting) -> Units:
    """Cut a model into what is gathered at a time."""
    narrow = setting.activation
    root = _numbers(model, setting) - sum(model.layer_numbers)
    layer = (weight_bytes(model, setting) - narrow * root) / model.layers
    if setting.adapter is None:
        gradient = WIDE * sum(model.layer_numbers) / model.layers
        return Units(model.layers, layer, narrow * root, gradient, WIDE * root)
    adapters = trained_numbers(model, setting) / (1 + int(setting.method.critic)) / model.layers
    return Units(model.layers, layer + WIDE * adapters, narrow * root, WIDE * adapters, 0.0)


def _numbers(model: Architecture, setting: Setting) -> int:
    """Weights of the policy; a reward model has no head."""
    return weight_bytes(model, replace(setting, adapter=None, base="fp32")) // WIDE


def rank_memory(model: Architecture, setting: Setting, layout: Layout, work: Work) -> Memory:
    """What a device holds at most."""
    if layout.shards == 1:
        alone = predict(model, setting, work)
        return Memory(alone.moment, {**alone.terms, "buffers": _buffers(setting, layout)})
    units, trained = units_of(model, setting), trained_numbers(model, setting)
    lasting = {name: -(-value // layout.shards) for name, value in _lasting(model, setting).items()}
    lasting["process"] = PROCESS[setting.device]
    lasting["buffers"] = _buffers(setting, layout)
    gradients = WIDE * trained // layout.shards
    # The root and two layers are whole while one is computed. Going back, gradients of one are there in the weights'
    # format and once more in float32, on their way; those of the head wait for the embedding's.
    twice = 1 + (setting.activation / WIDE if setting.adapter is None else 0)
    waiting = setting.activation * model.head_numbers if setting.adapter is None and not model.tied else 0
    back = round(2 * units.layer + units.root + twice * units.layer_gradient) + waiting
    moments = []
    for micro in work.heaviest:
        first, *later = Pass(model, setting, micro, several=True).moments()
        gathered = {"gathered": round(units.layer + units.root), "gradients": gradients}
        moments.append(Memory(first[0], lasting | first[1] | gathered))
        gathered = {"gathered": back, "gradients": gradients}
        moments += [Memory(moment, lasting | terms | gathered) for moment, terms in later]
    at_the_end = round(units.root + twice * units.root_gradient)
    moments.append(Memory("the embedding's gradient", lasting | {"gathered": at_the_end, "gradients": gradients}))
    moments.append(Memory("the update", lasting | {"gathered": round(units.root), "gradients": gradients}))
    if setting.method.rollouts:
        writing = rollout_terms(model, setting, work) | {"gathered": round(units.weights), "gradients": gradients}
        moments.append(Memory("writing completions", lasting | writing))
    most = max(moments, key=lambda memory: memory.total)
    order = (*ORDER, "gathered", "buffers")
    return Memory(most.moment, {name: most.terms[name] for name in order if most.terms.get(name, 0) > 0})


def _lasting(model: Architecture, setting: Setting) -> dict[str, int]:
    """What all devices of a copy hold together: trained weights in float32, and no second copy of them."""
    terms = lasting_terms(model, setting)
    if setting.adapter is None:
        trained, own = trained_numbers(model, setting), _numbers(model, setting)
        terms |= {"weights": WIDE * own, "optimizer": moment_bytes(setting, trained), "critic": WIDE * (trained - own)}
    return terms


def _buffers(setting: Setting, layout: Layout) -> int:
    groups = int(layout.shards > 1) + int(layout.copies > 1)
    return BUFFERS * groups if setting.device == "cuda" else 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a device sends in a step, and how long its computation waits for it."""

    sent: dict[str, float]
    """Bytes by collective."""
    seconds: float
    """Of all collectives."""
    waited: float
    """That computation does not hide."""


def traffic_of(
    model: Architecture, setting: Setting, layout: Layout, cluster: Cluster, cost: Cost, work: Work
) -> Traffic:
    """Walk through a step: a unit is gathered, or summed, while another is computed."""
    inner, outer = Ring(cluster, layout.shards), Ring(cluster, layout.copies, layout.shards)
    if layout.shards == 1:
        gradients = WIDE * trained_numbers(model, setting)
        seconds = outer.reduce(gradients)
        return Traffic({"all-reduce": 2 * outer.sent(gradients)}, seconds, seconds)
    units = units_of(model, setting)
    gather = _Units(inner.gather(units.layer), inner.gather(units.root))
    summed = _Units(
        inner.gather(units.layer_gradient) + outer.reduce(units.layer_gradient / layout.shards),
        inner.gather(units.root_gradient) + outer.reduce(units.root_gradient / layout.shards),
    )
    passes = work.micros * (1 + int(setting.method.critic))
    reads, writings = work.micros * int(setting.method.ahead), _writings(setting)
    down, back = units.layers * gather.layer, units.layers * (gather.layer + summed.layer)
    seconds = passes * (2 * gather.root + down + back + summed.root) + (reads + writings) * (gather.root + down)
    waited = seconds
    if cluster.hides:
        forward, backward = _unit_seconds(cost, work.micros * (units.layers + 1))
        ahead = gather.root + gather.layer + (units.layers - 1) * max(0.0, gather.layer - forward)
        behind = units.layers * max(0.0, gather.layer + summed.layer - backward)
        last = gather.root + gather.layer + summed.layer + summed.root
        waited = passes * (ahead + behind + last) + reads * ahead + writings * (gather.root + down)
    sent = {
        "all-gather": inner.sent((2 * passes + reads + writings) * units.weights),
        "reduce-scatter": inner.sent(passes * units.gradients),
        "all-reduce": 2 * outer.sent(passes * units.gradients / layout.shards),
    }
    return Traffic({name: value for name, value in sent.items() if value > 0}, seconds, min(waited, seconds))


def _writings(setting: Setting) -> float:
    """How often in a step all weights are gathered to write and to score completions."""
    return 1 / setting.method.epochs if setting.method.rollouts else 0.0


def _unit_seconds(cost: Cost, places: int) -> tuple[float, float]:
    """Seconds of a unit's own forward and backward pass; the root counts as one of the layers."""
    assert cost.rates is not None
    forward = cost.forward.seconds(cost.rates)
    trained = sum((cost.parts.get(name, Amount()) for name in ("body", "attention", "vocabulary")), Amount())
    return forward / places, max(0.0, trained.seconds(cost.rates) - forward) / places


@dataclass(frozen=True, slots=True)
class _Units:
    """Seconds of a collective over a layer, and over the root."""

    layer: float
    root: float
