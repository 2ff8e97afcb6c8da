"""Rows read as another kind, and written rows read back as what they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from truing.core.trees import Origin
from truing.data.conversion import FORMAT_OF, SERVES, as_kind, row_of
from truing.data.examples import KIND_OF, Comparison, Demonstration, Example, Judgement, Message, Prompt
from truing.data.formats import format_named, to_examples
from truing.data.records import read

HERE = Origin("data.json", 3)
ASKED = (Message("system", "Be kind."), Message("user", "Hello?"))
ANSWER, WORSE = (Message("assistant", "Hello!"),), (Message("assistant", "No."),)
TALK = (*ANSWER, Message("user", "And you?"), Message("assistant", "Well."))
EXAMPLES: tuple[Example, ...] = (
    Demonstration("Say hi.", " Hi.", HERE),
    Demonstration("", "Plain text.", HERE),
    Demonstration(ASKED, TALK, HERE),
    Comparison("Say hi.", " Hi.", " Go away.", None, HERE),
    Comparison(ASKED, ANSWER, WORSE, 0.5, HERE),
    Judgement("Say hi.", " Go away.", False, HERE),
    Judgement(ASKED, ANSWER, True, HERE),
    Prompt("Say hi.", {"target": 3, "chosen": "Hi."}, HERE),
    Prompt(ASKED, {}, HERE),
)


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_written_row_is_read_back_as_the_same_example(example: Example, tmp_path: Path) -> None:
    kind = KIND_OF[type(example)]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row_of(example)) + "\n", encoding="utf-8")
    source = read(str(file))
    converted = to_examples(source, format_named(FORMAT_OF[kind]), kind)
    assert not converted.faults.rows
    (found,) = converted.examples
    fields = [name for name in type(example).__slots__ if name != "origin"]
    assert [getattr(found, name) for name in fields] == [getattr(example, name) for name in fields]


def test_a_comparison_serves_every_method() -> None:
    pair = Comparison("Q", "good", "bad", 2.0, HERE)
    assert as_kind(pair, "comparison") == (pair,)
    assert as_kind(pair, "demonstration") == (Demonstration("Q", "good", HERE),)
    assert as_kind(pair, "judgement") == (Judgement("Q", "good", True, HERE), Judgement("Q", "bad", False, HERE))
    assert as_kind(pair, "prompt") == (Prompt("Q", {}, HERE),)


def test_of_judgements_the_desirable_answers_alone_are_shown_as_examples() -> None:
    assert as_kind(Judgement("Q", "good", True, HERE), "demonstration") == (Demonstration("Q", "good", HERE),)
    assert as_kind(Judgement("Q", "bad", False, HERE), "demonstration") == ()


def test_nothing_is_made_up() -> None:
    assert as_kind(Demonstration("Q", "A", HERE), "comparison") == ()
    assert as_kind(Demonstration("Q", "A", HERE), "judgement") == ()
    assert as_kind(Judgement("Q", "A", True, HERE), "comparison") == ()
    assert as_kind(Prompt("Q", {}, HERE), "demonstration") == ()
    assert as_kind(Demonstration("", "plain text", HERE), "prompt") == ()


def test_what_serves_a_kind_is_what_is_converted_to_it() -> None:
    for kind, kinds in SERVES.items():
        given = {KIND_OF[type(example)] for example in EXAMPLES if as_kind(example, kind)}
        assert given == set(kinds)
