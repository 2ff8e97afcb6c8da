"""A page that is one file: no script, no request to anywhere, right in light, dark, print and on a phone.

Builders take text of strangers and return `Markup`; whatever is not `Markup` is escaped, wherever it ends up.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from truing.core.text import harmless
from truing.pages.palette import DARK, LIGHT, properties

LONGEST_TEXT = 4000
"""Characters of one text of the data that a page shows."""


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of a page."""

    title: str
    id: str
    """The target of links to it; lower-case letters, digits and hyphens."""
    parts: tuple[Markup, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.id):
            raise ValueError(f"a section's id is lower-case letters, digits and hyphens, not {self.id!r}")


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page; with more than two sections it begins with links to them."""
    shown = [Section(text(section.title), section.id, section.parts) for section in sections]
    return _template().render(
        title=text(title),
        lead=text(lead),
        sections=shown,
        light=Markup(properties(LIGHT)),
        dark=Markup(properties(DARK)),
    )


def text(found: str, limit: int = LONGEST_TEXT) -> Markup:
    """Text of strangers: escaped, control characters made visible, and cut where it is very long."""
    cut = found if len(found) <= limit else found[:limit] + f"… ({len(found) - limit:,} more characters)"
    return escape(harmless(cut))


def paragraph(words: str) -> Markup:
    """A paragraph."""
    return Markup("<p>{}</p>").format(text(words))


def good(words: str) -> Markup:
    """A remark that nothing is wrong."""
    return Markup('<p class="good">{}</p>').format(text(words))


def warning(words: str) -> Markup:
    """A remark that asks for attention."""
    return Markup('<p class="warn">{}</p>').format(text(words))


def note(words: str) -> Markup:
    """A remark about the page itself, such as what is missing."""
    return Markup('<p class="note">{}</p>').format(text(words))


def heading(words: str) -> Markup:
    """A heading inside a section."""
    return Markup("<h3>{}</h3>").format(text(words))


def bullets(items: Iterable[str]) -> Markup:
    """A list."""
    return Markup("<ul>{}</ul>").format(_joined(Markup("<li>{}</li>").format(text(item)) for item in items))


def preformatted(words: str) -> Markup:
    """Text whose lines and spaces count; it scrolls sideways."""
    return Markup("<pre>{}</pre>").format(text(words, limit=100_000))


def marked(parts: Iterable[tuple[str, bool]]) -> Markup:
    """Text whose lines and spaces count, in stretches that are marked or not."""
    stretches = (Markup("<mark>{}</mark>" if mark else "{}").format(text(words)) for words, mark in parts)
    return Markup('<pre class="wrap">{}</pre>').format(Markup().join(stretches))


def figure(svg: Markup, caption: str = "", remarks: Sequence[str] = ()) -> Markup:
    """A figure over its caption, and remarks that ask for attention."""
    said = Markup("<figcaption>{}</figcaption>").format(text(caption)) if caption else Markup()
    return Markup("<figure>{}{}{}</figure>").format(svg, said, _joined(warning(remark) for remark in remarks))


def grid(parts: Iterable[Markup]) -> Markup:
    """Parts beside each other, as many as the width allows."""
    return Markup('<div class="grid">{}</div>').format(_joined(parts))


def folded(summary: str, parts: Iterable[Markup]) -> Markup:
    """Parts that show when asked for, and in print."""
    return Markup("<details><summary>{}</summary>{}</details>").format(text(summary), _joined(parts))


def key(svg: Markup, name: str) -> Markup:
    """The sample of a line before the name of what it stands for, for a cell of a table."""
    return Markup('<span class="key">{} {}</span>').format(svg, text(name, limit=40))


def legend(keys: Iterable[Markup]) -> Markup:
    """Keys in a row that stays in sight above the figures that follow."""
    return Markup('<div class="legend">{}</div>').format(_joined(keys))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], numeric: Container[int] = (), texts: Container[int] = ()
) -> Markup:
    """A table that scrolls by itself on a narrow screen.

    `numeric` columns are set to the right; in `texts` line ends are kept.
    """
    kinds = ["number" if place in numeric else "text" if place in texts else "" for place in range(len(headers))]
    head = _joined(_cell("th", kind, header) for kind, header in zip(kinds, headers, strict=True))
    body = _joined(
        Markup("<tr>{}</tr>").format(_joined(_cell("td", kind, cell) for kind, cell in zip(kinds, row, strict=True)))
        for row in rows
    )
    return Markup(
        '<div class="scroll" tabindex="0"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, body)


def _cell(tag: str, kind: str, content: str) -> Markup:
    shown = content if isinstance(content, Markup) else text(content)
    opening = Markup('<{} class="{}">').format(tag, kind) if kind else Markup("<{}>").format(tag)
    return Markup("{}{}</{}>").format(opening, shown, tag)


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("\n").join(parts)


@cache
def _template() -> Template:
    loader = PackageLoader("truing.pages", "")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.jinja")
