"""What one check of the data found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from truing.core.trees import Origin

Level = Literal["ok", "warn", "strong", "stop"]
"""`strong` is a warning that is seldom right to ignore; `stop` means that training would go wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    check: str
    """A stable name, as docs/data.md lists them."""
    level: Level
    sentence: str
    """What was found, with counts and shares."""
    remedy: str
    """The key to set or the command to run; empty where all is well."""
    rows: tuple[Origin, ...]
    """All rows concerned, in the order of the files."""
    examples: tuple[str, ...]
    """The shortened texts of up to three such rows, as they stand in the data: not yet harmless for a terminal."""
    figures: Mapping[str, float]
    """The numbers behind the sentence: `share`, `low`, `high` and others by their names."""
