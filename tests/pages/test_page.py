from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from truing.pages.page import (
    LONGEST_TEXT,
    Section,
    bullets,
    figure,
    folded,
    good,
    grid,
    heading,
    key,
    note,
    page,
    paragraph,
    preformatted,
    table,
    text,
    warning,
)

VOID = {"meta", "link"}


class Outline(HTMLParser):
    """The tags of a page, its text, and whether each tag is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    found.close()
    assert not found.open
    return found


def everything(words: str) -> str:
    parts = (
        paragraph(words),
        good(words),
        warning(words),
        note(words),
        heading(words),
        bullets([words, words]),
        preformatted(words),
        grid([figure(Markup("<b></b>"), words, [words])]),
        folded(words, [key(Markup("<i></i>"), words)]),
        table([words, words, words], [[words, words, words]], numeric={1}, texts={2}),
    )
    return page(words, words, [Section(words, name, parts) for name in ("a", "b", "c")])


@given(st.text(min_size=1))
def test_no_text_changes_the_structure_of_a_page(words: str) -> None:
    assert outline(everything(words)).tags == outline(everything("plain")).tags


def test_text_arrives_as_it_was_written() -> None:
    words = """<script>"1"</script> & ' {{ 7*7 }} <!--"""
    assert outline(everything(words)).words.count(words) == outline(everything("plain")).words.count("plain")


def test_control_characters_are_made_visible() -> None:
    shown = everything("a\x1b[31mb\x00c\u202ed")
    assert not set("\x1b\x00\u202e") & set(shown)
    assert r"\x1b[31m" in shown


def test_a_very_long_text_is_cut_and_says_so() -> None:
    assert text("x" * (LONGEST_TEXT + 1500)).endswith("x… (1,500 more characters)")


def test_a_page_asks_for_nothing_from_anywhere() -> None:
    shown = everything("plain")
    assert not re.search(r"https?:|@import|<script|\bsrc=|url\((?!#)", shown)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:;" in shown


def test_only_a_table_cell_that_is_markup_is_not_escaped() -> None:
    shown = table(["a", "b"], [[Markup("<b>x</b>"), "<b>y</b>"]])
    assert "<td><b>x</b></td><td>&lt;b&gt;y&lt;/b&gt;</td>" in shown.replace("\n", "")


def test_a_section_id_that_no_link_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="lower-case"):
        Section("x", 'x" onload="y', ())


def test_a_page_without_sections_is_whole() -> None:
    assert "<h1>nothing</h1>" in page("nothing", "", [])
