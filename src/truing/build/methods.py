"""What is told of a method, from the objective itself: `truing methods` prints it, docs/reference.py writes pages."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass

from truing.objectives.base import Objective
from truing.objectives.registry import discover, find

WIDTH = 110
"""Of what is printed, in characters."""


@dataclass(frozen=True, slots=True)
class FieldText:
    """One hyper-parameter."""

    name: str
    default: str
    """As a recipe would say it, or `required`."""
    meaning: str


@dataclass(frozen=True, slots=True)
class MethodText:
    """Everything about one objective, in words; both the terminal and the pages are made of this."""

    name: str
    purpose: str
    avoid: str
    equation: str
    """First paragraph of the docstring, which is a formula where it contains `=`."""
    explanation: tuple[str, ...]
    """The other paragraphs."""
    facts: tuple[tuple[str, str], ...]
    """What it is about, and what there is to say."""
    fields: tuple[FieldText, ...]
    watch: tuple[str, ...]
    failure: tuple[str, ...]

    @classmethod
    def of(cls, objective: type[Objective]) -> MethodText:
        """Collect what an objective says of itself."""
        equation, *explanation = _paragraphs(objective.__doc__ or "") or [""]
        return cls(
            objective.name,
            objective.purpose,
            objective.avoid,
            equation,
            tuple(explanation),
            _facts(objective),
            _fields(objective),
            tuple(objective.watch.splitlines()),
            tuple(objective.failure.splitlines()),
        )


def overview() -> str:
    """One paragraph an objective."""
    known = discover()
    wide = max(len(name) for name in known)
    lines = []
    for name, cls in known.items():
        lines.append(f"{name:<{wide}}  {cls.purpose}")
        lines.append(f"{'':<{wide}}  {cls.examples}s; {_parameters(cls)}; {cls.paper}")
    lines.append("")
    lines.append("truing methods NAME tells more. Your own: objective: {use: ./my_loss.py:MyLoss}")
    return "\n".join(lines)


def describe(name: str) -> str:
    """Everything about one objective, for a terminal."""
    text = MethodText.of(find(name))
    parts = [[": ".join(part for part in (text.name, text.purpose) if part), *([text.avoid] if text.avoid else [])]]
    parts += [[text.equation]] if text.equation else []
    parts += [_wrapped(paragraph, "", "") for paragraph in text.explanation]
    wide = max(len(about) for about, _ in text.facts)
    parts.append([f"{about:<{wide}}  {fact}" for about, fact in text.facts])
    if text.fields:
        fields = [[f"  {f.name} = {f.default}", *_wrapped(f.meaning, "      ", "      ")] for f in text.fields]
        parts.append(["fields", *(line for field in fields for line in field)])
    for title, remarks in (("what to watch", text.watch), ("signs of failure", text.failure)):
        if remarks:
            parts.append([title, *(line for remark in remarks for line in _wrapped(remark, "  - ", "    "))])
    return "\n\n".join("\n".join(part) for part in parts)


def written(value: object) -> str:
    """A value as a recipe would say it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(repr(item) for item in value) + "]"
    return "''" if value == "" else str(value)


def _facts(cls: type[Objective]) -> tuple[tuple[str, str], ...]:
    low, high = cls.learning_rate_range
    facts = [
        ("learns from", f"{cls.examples}s"),
        ("source", cls.paper or "not stated"),
        ("learning rate", f"{cls.learning_rate:g} (usual: {low:g} to {high:g}); ten times that with LoRA"),
    ]
    start = None if any(field.is_required() for field in cls.model_fields.values()) else cls().start()
    if start is not None:
        facts.append(("first loss", f"{start:.6g} with these defaults; another value stops the run"))
    return tuple(facts)


def _fields(cls: type[Objective]) -> tuple[FieldText, ...]:
    return tuple(
        FieldText(
            name,
            "required" if field.is_required() else written(field.get_default(call_default_factory=True)),
            " ".join((field.description or "").split()),
        )
        for name, field in cls.model_fields.items()
    )


def _parameters(cls: type[Objective]) -> str:
    return ", ".join(f"{field.name} {field.default}" for field in _fields(cls)) or "no parameters"


def _paragraphs(docstring: str) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(docstring).split("\n\n") if part.strip()]


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
