"""What `truing methods` prints, from the objectives themselves."""

from __future__ import annotations

from truing.objectives.base import Objective
from truing.objectives.registry import discover, find


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
    """Everything about one objective: formula, fields with defaults, rates, source, when not to use it."""
    cls = find(name)
    low, high = cls.learning_rate_range
    lines = [
        f"{cls.name}: {cls.purpose}",
        *([cls.avoid] if cls.avoid else []),
        "",
        *(line.strip() for line in (cls.__doc__ or "").strip().splitlines()),
        "",
        f"learns from  {cls.examples}s",
        f"source       {cls.paper or 'not stated'}",
        f"rate         {cls.learning_rate:g} with full weights ({low:g} to {high:g}), ten times that with LoRA",
    ]
    if cls.model_fields:
        lines += ["", "fields"]
    for field_name, field in cls.model_fields.items():
        lines.append(f"  {field_name} = {field.default!r}")
        lines.append(f"      {' '.join((field.description or '').split())}")
    return "\n".join(lines)


def _parameters(cls: type[Objective]) -> str:
    fields = ", ".join(f"{name} {field.default!r}" for name, field in cls.model_fields.items())
    return fields or "no parameters"
