from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from truing.advisor.flow import WIDTH, flow_figure
from truing.advisor.rules import rules

FIGURE = Path(__file__).parents[2] / "docs" / "deciding.svg"


def test_the_figure_shows_every_rule_that_decides_and_nothing_leaves_it() -> None:
    book = rules()
    root = ElementTree.fromstring(flow_figure(book))
    words = " ".join(text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text"))
    for rule in book.method:
        assert rule.answer in words
        for condition in rule.conditions:
            assert book.words(condition) in words
    for rule in book.variant:
        assert rule.advise["objective"]["use"] in words
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(box.get("x", 0)) + float(box.get("width", 0)) <= WIDTH


def test_the_page_has_the_figure_of_todays_rules() -> None:
    assert FIGURE.read_text(encoding="utf-8") == flow_figure(rules())
