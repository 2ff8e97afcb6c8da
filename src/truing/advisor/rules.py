"""The rules as they are written in rules.yaml, checked when they are read."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from truing.advisor.case import Case
from truing.core.errors import InputError, suggest
from truing.core.settings import Settings, parse

COMPARES: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
RELATIONS = {">=": "at least", "<=": "at most", ">": "more than", "<": "fewer than"}
KNOWN = {field.name for field in fields(Case)}

Value = bool | str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """A demand on one input."""

    name: str
    relation: str
    """`=` or one of `COMPARES`."""
    value: float | bool | str

    def holds(self, case: Case) -> bool:
        """Whether a case meets it; what is not known does not."""
        found = getattr(case, self.name)
        if found is None:
            return False
        return bool(found == self.value) if self.relation == "=" else COMPARES[self.relation](found, float(self.value))


class Input(Settings):
    """What a rule may ask about."""

    kind: Literal["count", "share", "ratio", "fact", "question", "choice"]
    label: str
    """What it is, in the fewest words: behind a number, or where it is true."""
    phrase: str
    """The same in a sentence about another case."""
    otherwise: str = ""
    """Said of `false`."""
    question: str = ""
    """What a person is asked who alone can know."""
    options: dict[str, str] = Field(default_factory=dict)


class Rule(Settings):
    """One line of a group."""

    id: str
    when: dict[str, Value] = Field(default_factory=dict)
    """Input → what it has to be; all have to hold."""
    applies_to: tuple[str, ...] = Field(default=(), alias="for")
    """Methods that it is about; any where empty."""
    advise: dict[str, Any] = Field(default_factory=dict)
    answer: str = ""
    because: str = ""
    say: str = ""
    source: tuple[str, ...]
    evidence: tuple[str, ...] = ()
    """Our own measurements that speak to it, by their names in evidence.yaml."""
    instead: dict[str, Any] = Field(default_factory=dict)
    """What to try beside it."""

    @field_validator("applies_to", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _asks_for_known_inputs(self) -> Rule:
        for name in self.when:
            if name not in KNOWN:
                raise ValueError(f"rule {self.id} asks for '{name}', which no case has{suggest(name, sorted(KNOWN))}")
        self.conditions  # noqa: B018  raises where one cannot be read
        return self

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All demands."""
        return tuple(one for name, value in self.when.items() for one in _conditions(name, value))

    def unmet(self, case: Case) -> tuple[Condition, ...]:
        """The conditions that do not hold."""
        return tuple(condition for condition in self.conditions if not condition.holds(case))

    def matches(self, case: Case, method: str | None = None) -> bool:
        """Whether all its conditions hold, and it is about the method."""
        about = not self.applies_to or method in self.applies_to
        return about and not self.unmet(case)


class Rules(Settings):
    """All groups."""

    inputs: dict[str, Input]
    method: tuple[Rule, ...]
    variant: tuple[Rule, ...]
    adapter: tuple[Rule, ...]
    warnings: tuple[Rule, ...]

    def words(self, condition: Condition) -> str:
        """A condition in words, such as `at least 200 comparisons`."""
        known, value = self.inputs[condition.name], condition.value
        if condition.relation == "=":
            if isinstance(value, bool):
                return known.label if value else f"not: {known.label}"
            return f"{known.label}: {known.options[str(value)]}"
        number = float(value)
        amount = f"{100 * number:.0f} %" if known.kind == "share" else f"{number:,.0f}"
        return f"{RELATIONS[condition.relation]} {amount} {known.label}"

    def everything(self) -> tuple[Rule, ...]:
        """The rules of all groups."""
        return (*self.method, *self.variant, *self.adapter, *self.warnings)


@cache
def rules() -> Rules:
    """Read the rules that come with the package."""
    text = resources.files("truing.advisor").joinpath("rules.yaml").read_text(encoding="utf-8")
    return parse(Rules, yaml.safe_load(text), where=lambda path: "rules.yaml: ", error=InputError)


def _conditions(name: str, value: Value) -> list[Condition]:
    if isinstance(value, tuple):
        return [condition for each in value for condition in _conditions(name, each)]
    if isinstance(value, bool):
        return [Condition(name, "=", value)]
    found = re.fullmatch(r"(>=|<=|>|<)\s*([\d.]+)", value)
    return [Condition(name, found[1], float(found[2]))] if found else [Condition(name, "=", value)]
