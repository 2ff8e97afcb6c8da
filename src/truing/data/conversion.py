"""What a row of one kind says in the terms of another, where nothing has to be made up; and rows written out again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truing.core.trees import ExampleKind
from truing.data.examples import KIND_OF, Comparison, Demonstration, Example, Judgement, Prompt, Words

SERVES: Mapping[ExampleKind, tuple[ExampleKind, ...]] = {
    "demonstration": ("demonstration", "comparison", "judgement"),
    "comparison": ("comparison",),
    "judgement": ("judgement", "comparison"),
    "prompt": ("prompt", "demonstration", "comparison", "judgement"),
}
"""Which kinds of rows can be read as a kind."""

FORMAT_OF: Mapping[ExampleKind, str] = {
    "demonstration": "prompt_completion",
    "comparison": "comparison",
    "judgement": "judgement",
    "prompt": "prompt",
}
"""The format that `row_of` writes a kind in."""


def as_kind(example: Example, kind: ExampleKind) -> tuple[Example, ...]:
    """Read an example as another kind: none, one or two examples of it.

    A judgement is a demonstration where the answer is desirable. Columns for rewards are not looked for in other kinds.
    """
    if KIND_OF[type(example)] == kind:
        return (example,)
    if kind == "prompt":
        return (Prompt(example.prompt, {}, example.origin),) if example.prompt else ()
    if isinstance(example, Comparison) and kind == "demonstration":
        return (chosen_answer(example),)
    if isinstance(example, Comparison) and kind == "judgement":
        return both_judged(example)
    if isinstance(example, Judgement) and kind == "demonstration" and example.label:
        return (Demonstration(example.prompt, example.completion, example.origin),)
    return ()


def chosen_answer(example: Comparison) -> Demonstration:
    """The chosen answer as the one to give."""
    return Demonstration(example.prompt, example.chosen, example.origin)


def both_judged(example: Comparison) -> tuple[Judgement, Judgement]:
    """The chosen answer as desirable, the rejected one as undesirable."""
    return (
        Judgement(example.prompt, example.chosen, True, example.origin),
        Judgement(example.prompt, example.rejected, False, example.origin),
    )


def row_of(example: Example) -> dict[str, Any]:
    """A row of `FORMAT_OF` its kind that is read back as the same example."""
    asked = _plain(example.prompt)
    if isinstance(example, Comparison):
        rated = {} if example.margin is None else {"margin": example.margin}
        return {"prompt": asked, "chosen": _plain(example.chosen), "rejected": _plain(example.rejected), **rated}
    if isinstance(example, Judgement):
        return {"prompt": asked, "completion": _plain(example.completion), "label": example.label}
    if isinstance(example, Demonstration):
        return {"prompt": asked, "completion": _plain(example.completion)}
    return {**example.columns, "prompt": asked}


def _plain(words: Words) -> str | list[dict[str, str]]:
    return words if isinstance(words, str) else [{"role": turn.role, "content": turn.content} for turn in words]
