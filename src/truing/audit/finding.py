"""What one check of the data found."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from truing.core.trees import Origin

Level = Literal["ok", "warn", "strong", "stop"]
"""`strong` is a warning that is seldom right to ignore; `stop` means that training would go wrong."""

EXAMPLES = 3
"""Rows of a finding whose texts it quotes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    check: str
    """A stable name, as docs/data.md lists them."""
    level: Level
    sentence: str
    """What was found, with counts and shares."""
    remedy: str = ""
    """The key to set or the command to run; empty where all is well."""
    rows: tuple[Origin, ...] = ()
    """All rows concerned, in the order of the files."""
    examples: tuple[str, ...] = ()
    """Shortened texts of the first `EXAMPLES` rows, as they stand in the data: not yet harmless for a terminal."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The numbers behind the sentence: `share`, `low`, `high` and others by their names."""


def graded(share: float, warn: float, strong: float) -> Level:
    """`warn` and `strong` above their thresholds, else `ok`."""
    return "strong" if share > strong else "warn" if share > warn else "ok"


def percent(share: float) -> str:
    """A share in words.

    >>> percent(0.0312), percent(1.0), percent(0.00004)
    ('3.1 %', '100 %', '< 0.1 %')
    """
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def shorten(text: str, most: int) -> str:
    """A text on one line, cut behind `most` characters; control characters stay, for somebody may look for them."""
    line = re.sub(r"[ \t\r\n]+", " ", text[: 4 * most]).strip(" ")
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1] + "…"


def cleaning(rows: Iterable[Origin], options: str = "") -> str:
    """The commands that take rows out of copies of their files.

    >>> cleaning([Origin("my pairs.jsonl.gz", 3)])
    "truing data clean 'my pairs.jsonl.gz' --output 'my pairs.clean.jsonl.gz'"
    """
    commands = []
    for name in dict.fromkeys(origin.file for origin in rows):
        path = PurePath(name)
        stem, dot, ends = path.name.partition(".")
        target = path.with_name(f"{stem}.clean{dot}{ends}")
        commands.append(f"truing data clean {shlex.quote(name)} --output {shlex.quote(str(target))}{options}")
    return "; ".join(commands)
