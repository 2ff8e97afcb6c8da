"""What a row says, apart from the format it was written in.

A prompt or a completion is either raw text, taken as it stands, or messages, which a chat template renders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from truing.core.trees import ExampleKind, Origin

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Messages = tuple[Message, ...]
Words = str | Messages
"""Raw text, or messages."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """How to answer. In messages, `completion` begins with the first turn that may be trained and ends with the last.

    A conversation of several turns has its later user turns in `completion`; which of its assistant turns are trained
    is decided when it is encoded. An empty `prompt` means plain text: every token of `completion` is trained.
    """

    prompt: Words
    completion: Words
    origin: Origin


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which of two answers is better, and by how much where `margin` is given."""

    prompt: Words
    chosen: Words
    rejected: Words
    margin: float | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether one answer is desirable."""

    prompt: Words
    completion: Words
    label: bool
    origin: Origin


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to be answered by the model; `columns` are the row's other values, for reward functions."""

    prompt: Words
    columns: Mapping[str, object] = field(hash=False)
    origin: Origin


Example = Demonstration | Comparison | Judgement | Prompt

KIND_OF: Mapping[type, ExampleKind] = {
    Demonstration: "demonstration",
    Comparison: "comparison",
    Judgement: "judgement",
    Prompt: "prompt",
}


def prompt_key(example: Example) -> str:
    """A SHA-256 that two examples share exactly when they have the same prompt; plain text counts as its own prompt."""
    words = example.prompt
    if isinstance(example, Demonstration) and not words:
        words = example.completion
    return words_key(words)


def words_key(words: Words) -> str:
    """A SHA-256 that is shared by the same words alone."""
    return hashlib.sha256(repr(words).encode()).hexdigest()
