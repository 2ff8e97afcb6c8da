"""Short trials of the candidates on the user's own data: a measurement that is clear overrules a rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from truing.advisor.advice import Advice
from truing.advisor.decide import Decision
from truing.advisor.trial import Trial
from truing.advisor.write_recipe import BY_ROLLOUTS, rate_of
from truing.compare.compare import compare
from truing.compare.request import Budget, Request
from truing.compare.standing import ACCURACY, LOSS, WINS, Standing
from truing.compare.verdict import Verdict

FIGURES = (WINS, ACCURACY, LOSS)
"""What trials are judged by: the first of them that could be measured."""


def candidates(advice: Advice) -> tuple[Decision, ...]:
    """The advice and its second choice, where both can be tried."""
    found = [one for one in (advice.decision, advice.runner_up) if one is not None and one.trains]
    tried = {one.use: one for one in found if _can_be_tried(one, advice)}
    return tuple(tried.values())


def probe(advice: Advice, chosen: Sequence[Decision], budget: Budget, output: Path) -> Trial:
    """Train each for an equal budget from the same start, and measure them on held-out prompts."""
    ground, case = advice.look.ground, advice.look.case
    verdict = compare(
        Request(
            recipes=(),
            model=ground.model,
            start=None,
            methods=tuple(one.use for one in chosen),
            data=tuple(file.path for file in ground.files),
            output=output,
            template=ground.template,
            adapter=_adapter(advice.decision),
            rates={one.use: rate_of(one.use, one, case) for one in chosen},
            budget=budget,
            reward=ground.rewards[0] if ground.rewards else None,
            max_length=ground.max_length,
        )
    )
    return read_verdict(verdict, chosen)


def _adapter(decision: Decision) -> Literal["lora", "qlora", "none"]:
    if decision.weights == "qlora":
        return "qlora"
    return "lora" if decision.lora else "none"


def read_verdict(verdict: Verdict, chosen: Sequence[Decision]) -> Trial:
    """The first of `chosen` is what the rules advise; it is overruled only by what is separated from it."""
    names = tuple(one.use for one in chosen)
    standing = next((found for one in FIGURES if (found := verdict.standing(one.key)) is not None), None)
    if standing is None:
        return Trial(names, "Nothing could be measured that candidates are judged by; the rules stand.", None)
    return judged(standing, chosen)


def judged(standing: Standing, chosen: Sequence[Decision]) -> Trial:
    """What one figure says of the rules' advice."""
    first, names = chosen[0].use, tuple(one.use for one in chosen)
    title = standing.figure.title
    if standing.best == first:
        return Trial(names, f"The trial agrees: {first} is best in {title}.", None)
    if first not in standing.behind:
        told = f"The trial does not separate {first} from {standing.best} in {title}; the rules stand."
        return Trial(names, told, None)
    apart = standing.differences[first]
    value, low, high = (standing.figure.shown(bound) for bound in (apart.value, apart.low, apart.high))
    size = f"{value} ({low} to {high})"
    better = next((one for one in chosen if one.use == standing.best), None)
    if better is None:
        told = (
            f"In the trial {first} ended {size} from where it began in {title}, beyond chance: at this rate and budget "
            "it does harm. Lower optim.lr before you train for longer."
        )
        return Trial(names, told, None)
    told = f"The measurement overrules the rule: {better.use} is best in {title}, {first} is {size} from it."
    return Trial(names, told, better)


def _can_be_tried(one: Decision, advice: Advice) -> bool:
    if one.use == "best_of_n":
        return False
    return one.use not in BY_ROLLOUTS or bool(advice.look.ground.rewards)
