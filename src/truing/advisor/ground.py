"""What an answer is built on besides its case: the files, the model, and how long rows are."""

from __future__ import annotations

from dataclasses import dataclass

from truing.core.trees import ExampleKind


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that something can be learned from."""

    path: str
    kind: ExampleKind
    """What its rows are by themselves."""
    rows: int


@dataclass(frozen=True, slots=True)
class Ground:
    """Everything that a recipe names."""

    model: str
    files: tuple[DataFile, ...]
    max_length: int
    """Tokens of nearly every row, within the model's positions."""
    answer_tokens: int
    """Tokens of nearly every answer."""
    template: str | None = None
    """Where the tokenizer has none and rows are conversations."""
    rewards: tuple[str, ...] = ()
    """What scores new answers: functions (`FILE.py:FN`) or runs of reward models."""

    def rows(self, kinds: tuple[ExampleKind, ...]) -> int:
        """Rows of some kinds."""
        return sum(file.rows for file in self.files if file.kind in kinds)

    def paths(self, kinds: tuple[ExampleKind, ...]) -> list[str]:
        """Files of some kinds."""
        return [file.path for file in self.files if file.kind in kinds]
