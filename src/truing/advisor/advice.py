"""The answer to "which method?": a decision with its reasons, a recipe, what it needs, and what would change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from truing.advisor.decide import NOT_TRAINED, Change, Decision, changes, decide, questions, runner_up
from truing.advisor.evidence import Evidence, evidence
from truing.advisor.look import Look
from truing.advisor.rules import Rule, Rules, rules
from truing.advisor.write_recipe import recipe_for, to_yaml
from truing.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Lacking:
    """A method that was not advised, and what its rule asks for that is not so."""

    answer: str
    lacks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """Everything that is told."""

    look: Look
    decision: Decision
    runner_up: Decision | None
    changes: tuple[Change, ...]
    open: tuple[str, ...]
    """Questions that nobody answered and whose answer can change the advice."""
    recipe: dict[str, Any] | None
    missing: str = ""
    """Why there is no recipe, where there could be one."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that decided."""
        found = (self.decision.method, self.decision.variant, self.decision.adapter)
        return tuple(rule for rule in found if rule is not None)

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """What our own studies say to them, each once."""
        names = dict.fromkeys(name for rule in (*self.rules, *self.decision.warnings) for name in rule.evidence)
        return tuple(evidence()[name] for name in names)

    def lacking(self, book: Rules | None = None) -> tuple[Lacking, ...]:
        """The methods that some condition rules out, each with the rule that lacks least."""
        book = book or rules()
        found: dict[str, Lacking] = {}
        for rule in book.method:
            method = str(rule.advise["method"])
            lacks = tuple(book.words(one) for one in rule.unmet(self.look.case))
            if not lacks or method in (self.decision.name, *NOT_TRAINED):
                continue
            if method not in found or len(lacks) < len(found[method].lacks):
                found[method] = Lacking(rule.answer, lacks)
        return tuple(found.values())

    def yaml(self) -> str:
        """The recipe as a file."""
        assert self.recipe is not None
        files = ", ".join(file.path for file in self.look.ground.files)
        return to_yaml(self.recipe, (f"{self.decision.method.answer} On {files}.", self.decision.method.because))

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "advice": self.decision.use,
            "answer": self.decision.method.answer,
            "trains": self.decision.trains,
            "objective": dict(self.decision.objective),
            "adapter": self.decision.weights,
            "rules": [_rule(rule) for rule in self.rules],
            "warnings": [_rule(rule) for rule in self.decision.warnings],
            "evidence": [one.model_dump() for one in self.evidence],
            "runner_up": None if self.runner_up is None else self.runner_up.use,
            "changes": [asdict(change) for change in self.changes],
            "open_questions": list(self.open),
            "not_advised": [asdict(one) for one in self.lacking()],
            "case": asdict(self.look.case),
            "data": [one.as_json() for one in self.look.audits],
            "recipe": self.recipe,
            "missing": self.missing,
        }


def advise(found: Look, measured: Decision | None = None) -> Advice:
    """Decide, and write the recipe; what a trial `measured` to be better takes the place of the rules' decision."""
    decision = measured or decide(found.case)
    recipe, missing = None, ""
    if decision.trains:
        try:
            recipe = recipe_for(decision, found.case, found.ground)
        except InputError as lack:
            missing = str(lack)
    second = decide(found.case) if measured is not None else runner_up(found.case)
    return Advice(found, decision, second, changes(found.case), questions(found.case), recipe, missing)


def _rule(rule: Rule) -> dict[str, Any]:
    told: Sequence[str] = [rule.because or rule.say]
    return {"id": rule.id, "because": told[0], "source": list(rule.source), "when": dict(rule.when)}
