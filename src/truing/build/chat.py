"""`truing chat`: talk to a result, before and after side by side if asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from truing.build.load_result import Opened, open_result
from truing.core.text import harmless
from truing.data.encoding import encode_prompts
from truing.data.examples import Message, Words
from truing.data.templates import Template, load_template
from truing.models.decoding import Choice
from truing.models.sampling import sample

Turns = list[tuple[Literal["user", "assistant"], str]]
"""A conversation so far, as (role, text)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are sampled."""

    max_new_tokens: int
    choice: Choice
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Speaker:
    """A model, and the template that turns a conversation into its prompt."""

    opened: Opened
    template: Template

    @classmethod
    def at(cls, path: Path) -> Speaker:
        opened = open_result(path)
        return cls(opened, load_template(None, opened.tokenizer))

    def answer(self, turns: Turns, settings: Settings) -> str:
        """Continue a conversation of (role, text)."""
        words: Words = tuple(Message(role, text) for role, text in turns)
        if self.template.source is None:  # a model of running text: the conversation so far is one text
            words = "".join(text for _, text in turns)
        written = sample(
            self.opened.model,
            encode_prompts([words], self.opened.tokenizer, self.template, self.opened.loaded.end_tokens),
            max_new_tokens=settings.max_new_tokens,
            choice=settings.choice,
            seed=settings.seed,
            end_tokens=self.opened.loaded.end_tokens,
        )
        return harmless(self.opened.tokenizer.decode(written[0][0].tokens, skip_special_tokens=True)).strip()


def answer_once(run: Path, compare_to: Path | None, prompt: str, settings: Settings) -> None:
    """Print one answer, or two side by side."""
    speaker = Speaker.at(run)
    other = Speaker.at(compare_to) if compare_to is not None else None
    _print(Console(), speaker, other, [("user", prompt)], [("user", prompt)], settings)


def converse(run: Path, compare_to: Path | None, settings: Settings) -> None:
    """Read lines until an empty one; each speaker keeps its own conversation."""
    console = Console()
    speaker = Speaker.at(run)
    other = Speaker.at(compare_to) if compare_to is not None else None
    console.print("An empty line ends the conversation, /new begins another.", style="dim")
    turns: Turns = []
    other_turns: Turns = []
    while True:
        try:
            line = console.input("[bold]> [/bold]").strip()
        except EOFError:
            return
        if not line:
            return
        if line == "/new":
            turns, other_turns = [], []
            continue
        turns.append(("user", line))
        other_turns.append(("user", line))
        answers = _print(console, speaker, other, turns, other_turns, settings)
        turns.append(("assistant", answers[0]))
        if other is not None:
            other_turns.append(("assistant", answers[1]))


def _print(
    console: Console,
    speaker: Speaker,
    other: Speaker | None,
    turns: Turns,
    other_turns: Turns,
    settings: Settings,
) -> list[str]:
    answer = speaker.answer(turns, settings)
    if other is None:
        console.print(Text(answer), highlight=False)
        return [answer]
    second = other.answer(other_turns, settings)
    table = Table(show_lines=False, expand=True)
    table.add_column(Text(other.opened.name), ratio=1)
    table.add_column(Text(speaker.opened.name), ratio=1)
    table.add_row(Text(second), Text(answer))
    console.print(table)
    return [answer, second]
