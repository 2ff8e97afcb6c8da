"""Markdown of text that strangers wrote: shown as it is, never as structure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from truing.core.text import harmless

LONGEST = 300
"""Characters of an inline text; more is cut off."""


def code(text: object) -> str:
    """Text as inline code on one line, in which neither Markdown nor HTML means anything; also within a table.

    >>> code("a|b"), code("``"), code("</td>\\n# x")
    ('`a\\\\|b`', '``` `` ```', '`</td> # x`')
    """
    flat = " ".join(harmless(str(text)).split())
    flat = flat if len(flat) <= LONGEST else flat[:LONGEST] + "…"
    fence = "`" * (_longest_run(flat) + 1)
    room = " " if flat.startswith("`") or flat.endswith("`") or not flat else ""
    return f"{fence}{room}{flat}{room}{fence}".replace("|", "\\|")


def block(text: str, language: str) -> str:
    """Text as a block of code, fenced by more backquotes than it holds in a row."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{harmless(text).rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
