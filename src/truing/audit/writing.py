"""What stands in the texts that nobody wants to train: control characters, broken encodings, markup, refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from truing.audit.finding import EXAMPLES, Finding, percent, shorten
from truing.audit.material import PARTS, Material
from truing.core.trees import Origin
from truing.data.examples import Example, Judgement
from truing.data.faults import counted

LIMITS = {"control": 0.0, "broken": 0.01, "markup": 0.05, "refusals": 0.05}
"""Shares of the rows above which each asks for attention. A control character is never meant; text broken in one row of
a hundred is learned; scraped pages have markup throughout, and a few rows are about markup; some questions are to be
declined.
"""

MANY = 0.05
"""Above this share of broken text it is the source that is broken."""

MEANINGS = {
    "control": "control characters or terminal escapes",
    "broken": "a broken encoding (U+FFFD, or such as Ã© for é)",
    "markup": "HTML tags",
    "refusals": 'a wanted answer that begins "As an AI language model"',
}

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_BROKEN = re.compile("\ufffd|[ÃÂ][\u0080-\u00bf]|â[\u0080-\u00bf]|â€[\u0080-\u2122]|ï»¿")
"""Replacement characters, and UTF-8 that was read as Latin-1 or Windows-1252."""
_SIGNS = ("\ufffd", "Ã", "Â", "â", "ï»¿")
"""One of these is in every text that `_BROKEN` finds, and they are found faster."""
_TAGS = re.compile(r"</?(?:p|div|span|br|a|li|ul|table|tr|td|strong|script)\b[^<>]*>", re.IGNORECASE)
_REFUSAL = re.compile(r"as an? (?:ai|artificial intelligence)(?: language)? (?:model|assistant)", re.IGNORECASE)
BEFORE = 40
"""Characters that an excerpt shows before what it is about."""

OPENING = 200
"""Characters of an answer in which a refusal introduces itself."""


def text_finding(material: Material) -> Finding:
    """The check `text`."""
    found: dict[str, dict[int, str]] = {name: {} for name in LIMITS}
    for index, example in enumerate(material.examples):
        for name, excerpt in _flaws(material.texts[PARTS * index : PARTS * (index + 1)], example):
            found[name][index] = excerpt
    shares = {name: material.share(indices) for name, indices in found.items()}
    told = {
        name: f"{counted(len(material.rows(indices)), 'row')} ({percent(shares[name])}) with {MEANINGS[name]}"
        for name, indices in found.items()
        if indices
    }
    over = [name for name in told if shares[name] > LIMITS[name]]
    if not over:
        some = "; ".join(told.values())
        return Finding("text", "ok", f"texts are clean but for {some}" if some else "texts are clean", figures=shares)
    excerpts: dict[Origin, str] = {}
    for index in sorted({index for name in over for index in found[name]}):
        excerpt = next(found[name][index] for name in over if index in found[name])
        excerpts.setdefault(material.examples[index].origin, excerpt)
    return Finding(
        "text",
        "strong" if shares["broken"] > MANY else "warn",
        "; ".join(told[name] for name in over),
        "mend them at their source, or take the rows out",
        tuple(excerpts),
        tuple(excerpts.values())[:EXAMPLES],
        shares,
    )


def _flaws(texts: Sequence[str], example: Example) -> Iterator[tuple[str, str]]:
    """What is wrong with an example's texts, and where."""
    wanted = texts[1][:OPENING] if not isinstance(example, Judgement) or example.label else ""
    for name, pattern, places in (
        ("control", _CONTROLS, texts),
        ("broken", _BROKEN, [text for text in texts if any(sign in text for sign in _SIGNS)]),
        ("markup", _TAGS, [text for text in texts if "</" in text or "<br" in text]),
        ("refusals", _REFUSAL, [wanted]),
    ):
        for text in places:
            hit = pattern.search(text)
            if hit is not None:
                yield name, _around(text, hit.start())
                break


def _around(text: str, place: int) -> str:
    """A text on one line, from somewhat before the place on."""
    start = max(0, place - BEFORE)
    return ("…" if start else "") + shorten(text[start:], 3 * BEFORE)
