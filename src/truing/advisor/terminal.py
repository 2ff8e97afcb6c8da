"""Advice in a terminal: the answer first, then why, what it needs, what to mind, and what would change it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from truing.advisor.advice import Advice
from truing.advisor.decide import WEIGHTS, Decision
from truing.advisor.rules import Rule, rules
from truing.advisor.trial import Trial
from truing.core.text import harmless
from truing.planner.plan import Plan

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Needs:
    """What the recipe needs."""

    plans: tuple[Plan, ...] = ()
    """Of its stages; none where it cannot be foreseen."""
    unknown: str = ""
    """Why not."""


def show(advice: Advice, needs: Needs, trial: Trial | None, console: Console) -> None:
    """Print everything but the recipe."""
    decision = advice.decision
    console.print(Text(_headline(decision), "bold green" if decision.trains else "bold yellow"))
    if trial is not None:
        _say(console, Text(trial.sentence, "cyan"))
    for rule in advice.rules if decision.trains else advice.rules[:1]:
        if rule is not decision.variant or rule.when:  # that nothing asks for a variant needs no line
            _say(console, _reason(rule, decision))
    for found in advice.evidence:
        _say(console, Text(f"measured: {found}", "cyan"))
    if needs.plans or needs.unknown:
        _heading(console, "What it needs")
        for line in _needs(needs.plans):
            _say(console, Text(line))
        if needs.unknown:
            _say(console, Text(f"Memory and time cannot be foreseen: {harmless(needs.unknown)}"))
    _bullets(console, "Mind", _warnings(advice))
    if advice.runner_up is not None:
        _heading(console, "Second choice")
        _say(console, _second(advice.runner_up))
    _changes(console, advice)
    _lacking(console, advice)
    if advice.open:
        known = rules().inputs
        _bullets(
            console, "Not known, and it can matter", [_question(name, known[name].question) for name in advice.open]
        )


def _headline(decision: Decision) -> str:
    answer = decision.method.answer
    if not decision.trains:
        return (
            answer
            if decision.name in ("none", "relabel", "collect")
            else "Do not train here: nothing fits into memory."
        )
    variant = "" if decision.variant is None or decision.use == decision.name else f" As {decision.use}."
    return f"{answer}{variant} With {WEIGHTS[decision.weights]}."


def _reason(rule: Rule, decision: Decision) -> Text:
    what = "" if rule is decision.method else f"{WEIGHTS.get(rule.advise.get('adapter', ''), decision.use)}: "
    return Text.assemble(f"{what}{rule.because} ", (f"[{'; '.join(rule.source)}]", "dim"))


def _needs(plans: Iterable[Plan]) -> list[str]:
    lines = []
    for plan in plans:
        seconds = plan.cost.seconds
        time = "" if seconds is None else f", about {_time(seconds)}"
        there = "" if plan.machine is None else f" of {plan.machine.memory / GIB:.1f} GiB ({plan.machine.name})"
        lines.append(f"{plan.setting.name}: {plan.memory.total / GIB:.1f} GiB{there}, {plan.work.steps:,} steps{time}")
    return lines


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _warnings(advice: Advice) -> list[Text]:
    said = [Text.assemble(f"{rule.say} ", (f"[{'; '.join(rule.source)}]", "dim")) for rule in advice.decision.warnings]
    said += [
        Text(harmless(f"{found.files[0]}: {finding.sentence}; {finding.remedy}"))
        for found in advice.look.audits
        for finding in found.findings
        if finding.level in ("strong", "stop")
    ]
    return said


def _second(other: Decision) -> Text:
    because = other.variant.because if other.variant is not None and other.variant.because else other.method.because
    return Text(f"{other.use}: {because}" if other.use not in ("none",) else other.method.answer)


def _changes(console: Console, advice: Advice) -> None:
    if not advice.changes:
        return
    _heading(console, "What would change the answer")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for change in advice.changes:
        table.add_row(change.sentence, Text(f"→ {change.use}", "bold"))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _lacking(console: Console, advice: Advice) -> None:
    found = advice.lacking()
    if not found:
        return
    _heading(console, "Why not")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for one in found:
        table.add_row(one.answer.rstrip("."), Text(f"asks for: {', '.join(one.lacks)}", "dim"))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _question(name: str, question: str) -> Text:
    return Text.assemble(f"{question} ", (f"--{name.replace('_', '-')}", "bold"))


def _bullets(console: Console, title: str, lines: Sequence[Text]) -> None:
    if not lines:
        return
    _heading(console, title)
    for line in lines:
        table = Table.grid(padding=(0, 1))
        table.add_row("•", line)
        console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _heading(console: Console, title: str) -> None:
    console.print(Text(f"\n{title}", "bold"))


def _say(console: Console, text: Text) -> None:
    console.print(Padding(text, (0, 0, 0, 2), expand=False))
