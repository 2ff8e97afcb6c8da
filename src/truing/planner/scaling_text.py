"""A model on a cluster, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from truing.core.text import harmless
from truing.planner.cluster import Cluster
from truing.planner.memory import trained_numbers
from truing.planner.scaling import Laid, Scaling
from truing.planner.text import duration, gib

SHOWN = 6
"""Layouts."""


def lines(scaling: Scaling) -> Iterator[str]:
    """What is planned, the layouts that fit, the best one in full, and how many devices pay."""
    setting, cluster = scaling.setting, scaling.cluster
    how = "all weights" if setting.adapter is None else f"LoRA rank {setting.adapter.rank}"
    yield f"{setting.name} on {harmless(scaling.model.name)} ({scaling.model.numbers:,} weights), {how}, {setting.base}"
    yield f"  {trained_numbers(scaling.model, setting):,} trained; {_machines(cluster)}"
    yield f"  a step of all devices: {scaling.examples:,} {harmless(scaling.rows)}"
    yield ""
    best = scaling.laid[0]
    if not best.fits:
        yield f"  does not fit: the least that a device needs is {gib(best.memory.total)}, {_layout(best)}"
        yield f"  of the {gib(cluster.machine.memory)} that {cluster.machine.name} has"
        return
    yield from _table(scaling.laid[:SHOWN])
    if len(scaling.laid) > SHOWN:
        yield f"  and {len(scaling.laid) - SHOWN} slower ones that fit"
    yield ""
    yield from _in_full(best)
    yield ""
    yield from _sizes(scaling)
    yield ""
    yield from _command(best)


def _machines(cluster: Cluster) -> str:
    nodes = f"{cluster.nodes} nodes of " if cluster.nodes > 1 else ""
    between = f", {cluster.network / 1e9:,.4g} GB/s between nodes" if cluster.nodes > 1 else ""
    inside = f", {cluster.link / 1e9:,.4g} GB/s within a node" if cluster.per_node > 1 else ""
    return f"{nodes}{cluster.per_node} {cluster.machine.name}{inside}{between}"


def _layout(laid: Laid) -> str:
    copies = "1 copy" if laid.layout.copies == 1 else f"{laid.layout.copies} copies"
    over = "whole on each device" if laid.layout.shards == 1 else f"over {laid.layout.shards} devices"
    again = ", activations computed again" if laid.setting.checkpointing else ""
    return f"{copies} {over}{again}"


def _table(found: Sequence[Laid]) -> Iterator[str]:
    yield f"  {'copies':>6}{'shards':>8}{'tokens at once':>16}{'again':>7}{'memory':>11}{'a step':>9}{'waiting':>9}" + (
        f"{'tokens/s':>11}{'each':>9}"
    )
    for laid in found:
        again = "yes" if laid.setting.checkpointing else "no"
        yield (
            f"  {laid.layout.copies:>6}{laid.layout.shards:>8}{laid.setting.micro_tokens:>16,}{again:>7}"
            f"{gib(laid.memory.total):>11}{duration(laid.seconds):>9}{laid.traffic.waited / laid.seconds:>9.0%}"
            f"{laid.speed:>11,.0f}{laid.speed_each:>9,.0f}"
        )


def _in_full(laid: Laid) -> Iterator[str]:
    yield f"  the fastest: {_layout(laid)}; a device holds"
    for name, value in laid.memory.terms.items():
        yield f"    {name:<16}{gib(value):>11}"
    yield f"    {'together':<16}{gib(laid.memory.total):>11}  most in {laid.memory.moment}"
    if laid.traffic.sent:
        sent = ", ".join(f"{name} {gib(value)}" for name, value in laid.traffic.sent.items())
        yield f"  and sends in a step: {sent}"
        yield (
            f"  {duration(laid.traffic.seconds)} of communication, of which computation hides all but "
            f"{duration(laid.traffic.waited)}"
        )
    if laid.cluster.machine.rates is not None:
        yield f"  computing {duration(laid.computing)} at {laid.cluster.machine.rates.said}"


def _sizes(scaling: Scaling) -> Iterator[str]:
    yield f"  the same step on {'devices':<9}{'layout':<26}{'a step':>9}{'tokens/s':>12}{'of the best':>13}"
    for laid in scaling.sizes:
        cut = f"{laid.layout.copies} × {laid.layout.shards}" + (" again" if laid.setting.checkpointing else "")
        yield (
            f"  {'':<17}{laid.layout.world:<9,}{cut:<26}{duration(laid.seconds):>9}{laid.speed:>12,.0f}"
            f"{scaling.efficiency(laid):>13.0%}"
        )
    pays, last = scaling.pays, scaling.sizes[-1] if scaling.sizes else None
    if pays is None or last is None:
        return
    if last is pays:
        yield f"  every size looked at pays: a device does at least {scaling.floor:.0%} of the best"
    else:
        yield f"  up to {pays.layout.world:,} devices pay; of more, each does less than {scaling.floor:.0%} of the best"


def _command(laid: Laid) -> Iterator[str]:
    nodes = f"--nnodes {laid.cluster.nodes} " if laid.cluster.nodes > 1 else ""
    keys = [f"parallel.shard={laid.layout.shards}", f"batch.micro_tokens={laid.setting.micro_tokens}"]
    if laid.setting.checkpointing:
        keys.append("precision.gradient_checkpointing=true")
    settings = " ".join(f"--set {key}" for key in keys)
    yield f"  torchrun {nodes}--nproc-per-node {laid.cluster.per_node} -m truing train RECIPE {settings}"
