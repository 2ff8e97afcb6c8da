"""From a model, a setting and its work to an answer: does it fit, what would, and what is the least to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import Architecture
from truing.planner.cost import Cost, cost_of
from truing.planner.machine import Machine
from truing.planner.memory import Memory, predict, trained_numbers
from truing.planner.setting import Setting, Work

MOST_TOKENS = 65_536
"""Tokens beyond which a larger micro-batch brings nothing."""

LEAST_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Change:
    """A way to need less (or use more) memory that leaves the effective batch as it is."""

    keys: tuple[str, ...]
    """As `--set` takes them."""
    memory: Memory

    @property
    def arguments(self) -> str:
        """What to put behind `truing train RECIPE`."""
        return " ".join(f"--set {key}" for key in self.keys)


@dataclass(frozen=True, slots=True)
class Plan:
    """A prediction beside what there is."""

    model: Architecture
    setting: Setting
    work: Work
    memory: Memory
    cost: Cost
    machine: Machine | None

    @property
    def fits(self) -> bool | None:
        """Whether the memory is there; None where nobody said how much there is."""
        return None if self.machine is None else self.memory.total <= self.machine.memory

    def as_json(self) -> dict[str, Any]:
        """What `plan.json` holds of it."""
        seconds = self.cost.seconds
        return {
            "bytes": dict(self.memory.terms),
            "total_bytes": self.memory.total,
            "moment": self.memory.moment,
            "available_bytes": None if self.machine is None else self.machine.memory,
            "fits": self.fits,
            "flop_per_step": self.cost.step,
            "seconds": None if seconds is None else float(f"{seconds:.3g}"),
        }


Repack = Callable[[int], Work]
"""What the steps compute with so many tokens at once."""


def make_plan(
    model: Architecture, setting: Setting, repack: Repack, machine: Machine | None, process: int | None = None
) -> Plan:
    """Predict a setting's memory and time."""
    work = repack(setting.micro_tokens)
    memory = predict(model, setting, work, process)
    cost = cost_of(model, setting, work, None if machine is None else machine.rates)
    return Plan(model, setting, work, memory, cost, machine)


def largest_that_fits(plan: Plan, repack: Repack) -> Plan | None:
    """Return the plan with the most tokens at once that still fits; None where not even one row does."""
    if plan.machine is None:
        return None
    best = None
    for tokens in _doubling(LEAST_TOKENS, MOST_TOKENS):
        tried = make_plan(plan.model, replace(plan.setting, micro_tokens=tokens), repack, plan.machine)
        if not tried.fits:
            break
        best = tried
    return best


def smallest_change(plan: Plan, repack: Repack) -> Change | None:
    """Return the least that makes it fit, with the batch of an optimizer step unchanged; None where nothing does.

    Fewer tokens at once costs little; computing activations again a third more time; an adapter, or fewer bits, change
    what is trained. Later ones keep what earlier ones have changed.
    """
    if plan.machine is None or plan.fits:
        return None
    for keys, setting in _changes(plan.setting):
        tried = predict(plan.model, setting, repack(setting.micro_tokens))
        if tried.total <= plan.machine.memory:
            return Change(keys, tried)
    return None


def _changes(setting: Setting) -> Iterator[tuple[tuple[str, ...], Setting]]:
    """Settings from the one at hand to the most frugal."""
    for base_keys, base in _frugal(setting):
        tokens = base.micro_tokens
        yield base_keys, base
        while tokens > LEAST_TOKENS:
            tokens //= 2
            yield (*base_keys, f"batch.micro_tokens={tokens}"), replace(base, micro_tokens=tokens)


def _frugal(setting: Setting) -> Iterator[tuple[tuple[str, ...], Setting]]:
    keys: tuple[str, ...] = ()
    yield keys, setting
    if not setting.checkpointing:
        setting = replace(setting, checkpointing=True)
        keys = (*keys, "precision.gradient_checkpointing=true")
        yield keys, setting
    if setting.base == "fp32":
        setting = replace(setting, base="bf16")
        keys = (*keys, "precision.dtype=bf16")
        yield keys, setting
    if setting.method.rollouts and not setting.share_base and setting.adapter is not None:
        setting = replace(setting, share_base=True)
        keys = (*keys, "rollout.share_base=true")
        yield keys, setting
    adapter = setting.adapter or AdapterSettings()
    if setting.adapter is None:
        setting = replace(setting, adapter=adapter, share_base=True)
        keys = (*keys, "adapter=lora")
        yield keys, setting
    if adapter.base is None and adapter.init != "pissa" and adapter.between_stages != "merge":
        yield (*keys, "adapter.base=nf4"), replace(setting, adapter=adapter.model_copy(update={"base": "nf4"}))


def _doubling(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


def table_settings(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """The three ways to train that articles compare: all weights, LoRA over bf16, and LoRA over 4 bits."""
    adapter = setting.adapter or AdapterSettings()
    ways: tuple[tuple[str, AdapterSettings | None], ...] = (
        ("full", None),
        ("LoRA", adapter.model_copy(update={"base": None})),
        ("QLoRA", adapter.model_copy(update={"base": "nf4"})),
    )
    for name, own in ways:
        yield name, replace(setting, adapter=own, base="bf16")


def trained(plan: Plan) -> int:
    """Trained numbers of policy and critic."""
    return trained_numbers(plan.model, plan.setting)
