"""Asks a person in a terminal what only a person knows, and only where the answer matters."""

from __future__ import annotations

import click

from truing.advisor.case import Case
from truing.advisor.decide import questions
from truing.advisor.rules import Input, rules

SCORED = ("verifier", "judge")
"""Questions that are answered by naming what scores answers."""


def ask(case: Case) -> tuple[Case, tuple[str, ...]]:
    """Ask until no open question can change the advice; return the case and what scores new answers."""
    rewards: list[str] = []
    while left := questions(case):
        name = left[0]
        known = rules().inputs[name]
        if name in SCORED:
            named = click.prompt(
                f"{known.question}\n  FILE.py:FN or RUN, or Enter for no", default="", show_default=False
            )
            rewards += [named] if named else []
            case = case.knowing(name, bool(named))
        elif known.kind == "choice":
            case = case.knowing(name, _choice(known))
        else:
            case = case.knowing(name, click.confirm(known.question, default=False))
    return case, tuple(rewards)


def _choice(known: Input) -> str:
    click.echo(known.question)
    names = list(known.options)
    for number, name in enumerate(names, start=1):
        click.echo(f"  {number}  {known.options[name]}")
    return names[click.prompt("  which", type=click.IntRange(1, len(names)), default=1) - 1]
