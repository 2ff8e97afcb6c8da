"""The decision as a figure, drawn from the rules themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

from truing.advisor.decide import WEIGHTS
from truing.advisor.rules import Rule, Rules

WIDTH = 860
LEFT, ASK, GAP, ANSWER = 20, 380, 60, 380
LINE, PADDING, BETWEEN = 18, 11, 26
COLUMNS = 50
"""Characters of a line inside a box."""

STYLE = """
.ask { fill: #eef3fb; stroke: #4c72b0; } .end { fill: #eaf5ec; stroke: #3c8d5a; }
.stop { fill: #fbf0e6; stroke: #c2752d; } text { fill: #1c1c1c; font: 13px system-ui, sans-serif; }
.head { font-weight: 600; font-size: 15px; } .word { fill: #555; font-size: 12px; }
path { stroke: #666; fill: none; marker-end: url(#tip); }
"""
TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 L8 4 L0 8 z" style="fill:#666;stroke:none;marker-end:none"/></marker></defs>'
)


def flow_figure(book: Rules) -> str:
    """An SVG: question after question, and where each leads; first the method, then its variant, then the weights."""
    parts: list[str] = []
    top = 16
    groups: list[tuple[str, Sequence[Rule]]] = [("Which method: the first box that is true", book.method)]
    for method, name in (("dpo", "DPO, or which relative of it"), ("kto", "KTO, or which relative of it")):
        groups.append((name, [rule for rule in book.variant if method in rule.applies_to]))
    groups.append(("LoRA, or all weights", book.adapter))
    for title, group in groups:
        top = _group(parts, title, group, book, top)
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">',
        "<title>How the method is chosen</title>",
        f"<style>{STYLE}</style>",
        TIP,
        f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>',
        *parts,
        "</svg>",
    )
    return "\n".join(lines) + "\n"


def _group(parts: list[str], title: str, group: Sequence[Rule], book: Rules, top: int) -> int:
    """Draw one group below `top`; return where the next begins."""
    parts.append(f'<text class="head" x="{LEFT}" y="{top + 14}">{escape(title)}</text>')
    top += 30
    for place, rule in enumerate(group):
        asked = _wrapped([book.words(condition) for condition in rule.conditions] or ["anything else"], " · ")
        told, kind = _told(rule)
        answer = textwrap.wrap(told, COLUMNS)
        height = 2 * PADDING + LINE * max(len(asked), len(answer))
        parts.append(_box("ask", LEFT, top, ASK, height, asked))
        parts.append(_box(kind, LEFT + ASK + GAP, top, ANSWER, height, answer))
        middle = top + height // 2
        parts.append(f'<path d="M{LEFT + ASK} {middle} H{LEFT + ASK + GAP - 2}"/>')
        parts.append(f'<text class="word" x="{LEFT + ASK + 16}" y="{middle - 6}">yes</text>')
        top += height
        if place < len(group) - 1:
            parts.append(f'<path d="M{LEFT + ASK // 2} {top} V{top + BETWEEN - 2}"/>')
            parts.append(f'<text class="word" x="{LEFT + ASK // 2 + 8}" y="{top + 17}">no</text>')
            top += BETWEEN
    return top + 34


def _told(rule: Rule) -> tuple[str, str]:
    """What a rule advises in words, and the class of its box."""
    if rule.answer:
        trains = rule.advise["method"] not in ("none", "relabel", "collect")
        return rule.answer, "end" if trains else "stop"
    if "adapter" in rule.advise:
        weights = rule.advise["adapter"]
        if weights == "none_fits":
            return f"{WEIGHTS[weights]}, or a larger machine", "stop"
        return WEIGHTS[weights], "end"
    objective = rule.advise["objective"]
    knobs = ", ".join(f"{key} {value}" for key, value in objective.items() if key != "use")
    return f"{objective['use']}{f' ({knobs})' if knobs else ''}", "end"


def _wrapped(phrases: Sequence[str], between: str) -> list[str]:
    """Phrases on as few lines as they fit on, none broken where it fits on one."""
    lines = [""]
    for phrase in phrases:
        joined = f"{lines[-1]}{between if lines[-1] else ''}{phrase}"
        if len(joined) <= COLUMNS:
            lines[-1] = joined
        else:
            lines += textwrap.wrap(phrase, COLUMNS)
    return [line for line in lines if line]


def _box(kind: str, left: int, top: int, width: int, height: int, lines: Sequence[str]) -> str:
    first = top + (height - LINE * len(lines)) // 2 + 13
    written = "".join(
        f'<text x="{left + 12}" y="{first + LINE * number}">{escape(line)}</text>' for number, line in enumerate(lines)
    )
    return f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{height}" rx="7"/>{written}'
