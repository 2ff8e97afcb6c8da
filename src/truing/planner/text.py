"""Plans as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from truing.core.text import harmless
from truing.planner.machine import GIB
from truing.planner.memory import trained_numbers
from truing.planner.plan import Plan, largest_that_fits, smallest_change
from truing.planner.request import Answer


def lines(answer: Answer) -> Iterator[str]:
    """What is planned, its memory term by term, whether it fits, what would, and how long it takes."""
    plan = answer.plan
    setting = plan.setting
    yield f"{setting.name} on {harmless(plan.model.name)} ({plan.model.kind}, {plan.model.numbers:,} weights)"
    how = "all weights" if setting.adapter is None else setting.adapter.summary
    again = ", activations computed again" if setting.checkpointing else ""
    yield f"  {how}, {setting.base}, {setting.device}{again}; {trained_numbers(plan.model, setting):,} trained"
    yield f"  {harmless(answer.rows)}; at most {setting.micro_tokens:,} tokens at once"
    yield ""
    for name, value in plan.memory.terms.items():
        yield f"  {name:<16}{gib(value):>11}"
    yield f"  {'together':<16}{gib(plan.memory.total):>11}  most in {plan.memory.moment}"
    yield ""
    yield from _fit(answer)
    yield from _time(plan)


def _fit(answer: Answer) -> Iterator[str]:
    plan = answer.plan
    if plan.machine is None:
        yield "  --gpu NAME or SIZE, or --device cpu, says whether this fits"
        return
    there = f"{gib(plan.machine.memory).strip()} of {plan.machine.name}"
    if plan.fits:
        yield f"  fits into the {there}"
        best = largest_that_fits(plan, answer.repack)
        if best is not None and best.setting.micro_tokens > plan.setting.micro_tokens:
            yield f"  so would batch.micro_tokens={best.setting.micro_tokens} ({gib(best.memory.total).strip()})"
        return
    yield f"  does not fit into the {there}"
    change = smallest_change(plan, answer.repack)
    if change is not None:
        yield f"  smallest change that does: {change.arguments} ({gib(change.memory.total).strip()})"
    else:
        yield "  no setting does: take a smaller model, or shorter rows (data.max_length)"


def _time(plan: Plan) -> Iterator[str]:
    cost = plan.cost
    computed = {name: part.operations / cost.step for name, part in cost.parts.items() if part.operations > 0}
    shares = ", ".join(f"{name} {share:.0%}" for name, share in computed.items())
    amount = f"{cost.step / 1e12:,.0f}" if cost.step > 1e14 else f"{cost.step / 1e12:.3g}"
    yield f"  a step computes {amount} TFLOP: {shares}"
    if cost.seconds is not None and cost.rates is not None:
        steps = "a step takes" if cost.steps == 1 else f"{cost.steps:,} steps take"
        yield f"  {steps} about {duration(cost.seconds)} at {cost.rates.said}"


def table_lines(cells: Iterable[tuple[str, str, Plan]]) -> Iterator[str]:
    """Methods by ways of training, in GiB; what does not fit is marked."""
    rows: dict[str, dict[str, Plan]] = {}
    for method, way, plan in cells:
        rows.setdefault(method, {})[way] = plan
    ways = list(next(iter(rows.values()), {}))
    yield f"  {'':<8}" + "".join(f"{way:>14}" for way in ways)
    for method, plans in rows.items():
        yield f"  {method:<8}" + "".join(f"{_cell(plans[way]):>14}" for way in ways)
    yield ""
    if any(plan.fits is False for plans in rows.values() for plan in plans.values()):
        yield "  x: does not fit"
    yield "  QLoRA: NF4 base (adapter.base), 16-bit embeddings and head"


def _cell(plan: Plan) -> str:
    return gib(plan.memory.total).strip() + (" x" if plan.fits is False else "")


def gib(value: float) -> str:
    """Bytes as a person compares them with a card: binary gigabytes.

    >>> gib(24 * 2**30), gib(3 * 2**20)
    ('24.0 GiB', '3 MiB')
    """
    return f"{value / GIB:,.1f} GiB" if value >= GIB / 10 else f"{value / 2**20:,.3g} MiB"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person thinks in.

    >>> duration(0.026), duration(300), duration(7200)
    ('0.026 s', '5 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
