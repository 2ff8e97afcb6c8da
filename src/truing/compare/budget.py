"""How many steps of each method an equal budget buys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from truing.compare.request import Budget
from truing.compare.work import Pace
from truing.core.errors import InputError
from truing.data.packing import StepPlan

ENDLESS = 10**9


@dataclass(frozen=True, slots=True)
class Course:
    """What a method is to do."""

    steps: int
    tokens: float | None
    """Foreseen."""
    seconds: float | None
    """Foreseen; of time budgets alone."""


def one_pass(plan: StepPlan) -> int:
    """Tokens of one pass over a method's rows."""
    return sum(plan.sizes)


def default_budget(plans: Mapping[str, StepPlan], paces: Mapping[str, Pace]) -> Budget:
    """The tokens of one pass over the smallest method's data, so that no method has to see a row twice.

    A method that writes completions of its own processes as many as its steps, times what its calibration took.
    """
    passes = [
        paces[name].tokens * len(plan.sizes) / (plan.examples or 1) if name in paces else one_pass(plan)
        for name, plan in plans.items()
    ]
    return Budget("tokens", float(round(min(passes))))


def course(name: str, budget: Budget, plan: StepPlan, pace: Pace | None) -> Course:
    """The steps that come nearest to a budget.

    Tokens are counted on the very batches that will be trained; where a method writes its own, and for time, what a
    step takes was measured.
    """
    if budget.unit == "steps":
        steps = int(budget.amount)
        return Course(steps, pace.tokens * steps if pace else float(tokens_of(plan, steps)), None)
    if budget.unit == "time":
        assert pace is not None
        steps = round(budget.amount / pace.seconds)
        if steps < 1:
            raise InputError(
                f"{name}: one step takes {pace.seconds:.2g} s, which is more than --budget time={budget.amount:g}s"
            )
        return Course(steps, pace.tokens * steps, pace.seconds * steps)
    if pace is not None:
        steps = max(1, round(budget.amount / pace.tokens))
        return Course(steps, pace.tokens * steps, None)
    steps, tokens = nearest(plan, budget.amount)
    return Course(steps, float(tokens), None)


def nearest(plan: StepPlan, tokens: float) -> tuple[int, int]:
    """How many steps come nearest to so many tokens, at least one, and what they come to."""
    before = 0
    for step in replace(plan, max_steps=ENDLESS).steps():
        after = before + sum(plan.sizes[row] for micro in step.micro_batches for row in micro)
        if after >= tokens:
            stop_before = step.index > 0 and tokens - before < after - tokens
            return (step.index, before) if stop_before else (step.index + 1, after)
        before = after
    raise AssertionError("a plan without an end has ended")


def tokens_of(plan: StepPlan, steps: int) -> int:
    """Tokens of the first so many steps."""
    micros = (micro for step in replace(plan, max_steps=steps).steps() for micro in step.micro_batches)
    return sum(plan.sizes[row] for micro in micros for row in micro)
