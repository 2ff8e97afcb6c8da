"""`truing advise`: looks, asks, decides, tries where it is asked to, tells, and writes the recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import click
from rich.console import Console

from truing.advisor.advice import Advice, advise
from truing.advisor.ask import ask
from truing.advisor.look import Asked, Progress, look
from truing.advisor.terminal import Needs, show
from truing.advisor.trial import Trial
from truing.advisor.write_recipe import HEADER
from truing.compare.request import Budget
from truing.core.errors import MachineError, RunError, TruingError
from truing.planner.request import recipe_answers
from truing.recipe.load import recipe_from
from truing.training.run_directory import replace_file


@dataclass(frozen=True, slots=True)
class Ways:
    """How the advice is given."""

    recipe: Path
    """Where the recipe goes."""
    interactive: bool
    as_json: bool
    budget: Budget | None
    """Of a trial of the candidates; none is made without."""
    trials: Path
    """Where trials are kept."""


def give_advice(asked: Asked, ways: Ways, console: Console, on_progress: Progress) -> None:
    """Print the advice and write its recipe."""
    _check_target(ways.recipe)
    found = look(asked, on_progress)
    if ways.interactive:
        case, rewards = ask(found.case)
        ground = replace(found.ground, rewards=(*found.ground.rewards, *rewards))
        found = replace(found, case=case, ground=ground)
    advice = advise(found)
    trial = None
    if ways.budget is not None:
        trial = _try(advice, ways.budget, ways.trials)
        advice = advise(found, trial.overruled) if trial.overruled is not None else advice
    needs = _needs(advice, asked)
    if ways.as_json:
        plans = [plan.as_json() for plan in needs.plans]
        told = {**advice.as_json(), "plan": plans, "no_plan": needs.unknown, "trial": trial and trial.sentence}
        click.echo(json.dumps(told, indent=2))
    else:
        show(advice, needs, trial, console)
    if advice.recipe is None:
        if advice.missing and not ways.as_json:
            console.print(f"\nNo recipe: {advice.missing}", markup=False, highlight=False)
        return
    replace_file(ways.recipe, advice.yaml())
    if not ways.as_json:
        console.print(
            f"\nThe recipe is {ways.recipe}:\n  truing train {ways.recipe} --output runs/{advice.decision.use}",
            markup=False,
            highlight=False,
        )


def _try(advice: Advice, budget: Budget, folder: Path) -> Trial:
    from truing.advisor.probe import candidates, probe  # trains, and so imports torch

    chosen = candidates(advice)
    if len(chosen) < 2:
        names = ", ".join(one.use for one in chosen) or advice.decision.use
        return Trial((names,), "There is no second candidate that these data can train; nothing was tried.", None)
    return probe(advice, chosen, budget, folder)


def _needs(advice: Advice, asked: Asked) -> Needs:
    """Memory and time of every stage of the recipe, or why they cannot be foreseen."""
    if advice.recipe is None:
        return Needs()
    try:
        recipe = recipe_from(advice.recipe)
        return Needs(tuple(one.plan for one in recipe_answers(recipe, asked.machine, asked.machine.device, None)))
    except TruingError as fault:
        return Needs(unknown=str(fault))


def _check_target(target: Path) -> None:
    """A recipe that somebody else wrote is not written over."""
    try:
        known = not target.exists() or target.read_text(encoding="utf-8").startswith(HEADER)
    except (OSError, UnicodeDecodeError):
        known = False
    if not known:
        raise RunError(f"{target} is there already, and not written by `truing advise`; give another --recipe")
    if not target.resolve().parent.is_dir():
        raise MachineError(f"{target}: there is no folder {target.parent}; make it, or give another --recipe")
