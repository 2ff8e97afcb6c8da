from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.core.errors import DataError
from truing.core.trees import ExampleKind, Origin
from truing.data.examples import Comparison, Demonstration, Example, Judgement, Message, Messages, Prompt, prompt_key
from truing.data.format_names import FormatName
from truing.data.formats import FORMATS, Format, detect, format_named, to_examples
from truing.data.records import Record, Source

Row = dict[str, object]
AT = Origin("f.json", 1)


def source(*rows: Row) -> Source:
    return Source("f.json", "", tuple(Record(row, Origin("f.json", n)) for n, row in enumerate(rows, start=1)))


def read_as(kind: ExampleKind, *rows: Row, format: str | None = None) -> list[Example]:
    src = source(*rows)
    converted = to_examples(src, format_named(format) if format else detect(src).format, kind)
    converted.faults.stop("stop")
    return list(converted.examples)


def u(text: str) -> Message:
    return Message("user", text)


def a(text: str) -> Message:
    return Message("assistant", text)


def m(role: str, content: object) -> Row:
    return {"role": role, "content": content}


def sg(who: str, value: str) -> Row:
    return {"from": who, "value": value}


CHAT = [m("system", "S"), m("user", "q1"), m("assistant", "a1"), m("user", "q2"), m("assistant", "a2")]
CHAT_PROMPT: Messages = (Message("system", "S"), u("q1"))
CHAT_REST: Messages = (a("a1"), u("q2"), a("a2"))


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        ({"instruction": "Do", "input": "", "output": "Done"}, "alpaca", Demonstration((u("Do"),), (a("Done"),), AT)),
        ({"instruction": "Do", "input": "it", "output": "D"}, "alpaca", Demonstration((u("Do\nit"),), (a("D"),), AT)),
        (
            {"instruction": "q2", "output": "a2", "system": "S", "history": [["q1", "a1"]]},
            "alpaca",
            Demonstration(CHAT_PROMPT, CHAT_REST, AT),
        ),
        (
            {"conversations": [sg("human", "q1"), sg("gpt", "a1"), sg("human", "q2"), sg("gpt", "a2")], "system": "S"},
            "sharegpt",
            Demonstration(CHAT_PROMPT, CHAT_REST, AT),
        ),
        ({"messages": CHAT}, "messages", Demonstration(CHAT_PROMPT, CHAT_REST, AT)),
        ({"text": "Once"}, "text", Demonstration("", "Once", AT)),
        ({"prompt": "2+2=", "completion": "4"}, "prompt_completion", Demonstration("2+2=", "4", AT)),
        (
            {"prompt": [m("user", "q1"), m("assistant", "a1"), m("user", "q2")], "completion": [m("assistant", "a2")]},
            "prompt_completion",
            Demonstration((u("q1"), a("a1"), u("q2")), (a("a2"),), AT),
        ),
    ],
)
def test_demonstrations_are_recognised_and_read(row: Row, name: str, expected: Demonstration) -> None:
    assert detect(source(row)).format.name == name
    assert read_as("demonstration", row) == [expected]


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        (
            {"prompt": "Capital?", "chosen": " Paris", "rejected": " London", "margin": 2},
            "comparison",
            Comparison("Capital?", " Paris", " London", 2.0, AT),
        ),
        (
            {"prompt": "q", "chosen": [m("assistant", "x")], "rejected": [m("assistant", "y")]},
            "comparison",
            Comparison((u("q"),), (a("x"),), (a("y"),), None, AT),
        ),
        (  # implicit prompt: the longest common beginning, in whole messages
            {"chosen": [*CHAT[:4], m("assistant", "xa")], "rejected": [*CHAT[:4], m("assistant", "xb")]},
            "comparison",
            Comparison((*CHAT_PROMPT, a("a1"), u("q2")), (a("xa"),), (a("xb"),), None, AT),
        ),
        (  # UltraFeedback: the prompt stands in its own column and in both conversations
            {
                "prompt": "q",
                "chosen": [m("user", "q"), m("assistant", "x")],
                "rejected": [m("user", "q"), m("assistant", "y")],
                "messages": CHAT,
                "score_chosen": 8.5,
                "score_rejected": 6,
            },
            "comparison",
            Comparison((u("q"),), (a("x"),), (a("y"),), 2.5, AT),
        ),
        (
            {
                "chosen": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: yes, two",
                "rejected": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: no",
            },
            "hh",
            Comparison((u("q1"), a("a1"), u("q2")), (a("yes, two"),), (a("no"),), None, AT),
        ),
        (
            {"conversations": [sg("human", "q")], "chosen": sg("gpt", "x"), "rejected": sg("gpt", "y")},
            "llamafactory_comparison",
            Comparison((u("q"),), (a("x"),), (a("y"),), None, AT),
        ),
        (
            {"instruction": "q", "input": "", "chosen": "x", "rejected": "y"},
            "alpaca_comparison",
            Comparison((u("q"),), (a("x"),), (a("y"),), None, AT),
        ),
    ],
)
def test_comparisons_are_recognised_and_read(row: Row, name: str, expected: Comparison) -> None:
    assert detect(source(row)).format.name == name
    assert read_as("comparison", row) == [expected]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "completion": "x", "label": True}, Judgement("q", "x", True, AT)),
        ({"messages": [m("user", "q"), m("assistant", "x")], "label": 0}, Judgement((u("q"),), (a("x"),), False, AT)),
        (
            {"conversations": [sg("human", "q"), sg("gpt", "x")], "kto_tag": -1},
            Judgement((u("q"),), (a("x"),), False, AT),
        ),
        ({"instruction": "q", "output": "x", "kto_tag": "up"}, Judgement((u("q"),), (a("x"),), True, AT)),
        ({"messages": CHAT, "label": "Bad"}, Judgement((*CHAT_PROMPT, *CHAT_REST[:2]), (a("a2"),), False, AT)),
    ],
)
def test_judgements_are_recognised_and_read(row: Row, expected: Judgement) -> None:
    assert detect(source(row)).format.name == "judgement"
    assert read_as("judgement", row) == [expected]


GOOD = [True, 1, 1.0, "1", "true", "TRUE", "yes", "up", "good", "Desirable", " true "]
BAD = [False, 0, -1, -1.0, "0", "-1", "False", "no", "down", "bad", "undesirable"]
STRANGE = [2, 0.5, math.nan, "maybe", "", "t", "1.0", [], {}, [True], "2", -2]


@pytest.mark.parametrize(("labels", "expected"), [(GOOD, True), (BAD, False)])
def test_labels_are_read_whatever_their_spelling(labels: list[object], expected: bool) -> None:
    rows = [{"prompt": "q", "completion": "x", "label": label} for label in labels]
    assert [e.label for e in read_as("judgement", *rows) if isinstance(e, Judgement)] == [expected] * len(labels)


@pytest.mark.parametrize("label", STRANGE)
def test_a_strange_label_is_a_fault_and_never_a_guess(label: object) -> None:
    with pytest.raises(DataError, match=r"f\.json:2: 'label' is .*; expected true or false"):
        read_as(
            "judgement",
            {"prompt": "q", "completion": "x", "label": True},
            {"prompt": "q", "completion": "x", "label": label},
        )


PAIR: Row = {"prompt": "q", "chosen": "x", "rejected": "y"}
ALPACA: Row = {"instruction": "q", "output": "x"}
TALK: Row = {"messages": [m("user", "q"), m("assistant", "x")]}
HH = "\n\nHuman: q\n\nAssistant: "


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        ("comparison", PAIR, {"prompt": "q", "chosen": "x"}, "'chosen' but no 'rejected'; DPO needs both.*use kto"),
        ("comparison", PAIR, {"prompt": "q", "rejected": "x"}, "no 'chosen'"),
        ("comparison", PAIR, {**PAIR, "rejected": "x"}, "are the same"),
        ("comparison", PAIR, {**PAIR, "chosen": "  \n"}, "'chosen' is blank"),
        ("comparison", PAIR, {**PAIR, "rejected": ""}, "'rejected' is empty"),
        ("comparison", PAIR, {**PAIR, "chosen": math.nan}, "'chosen' holds NaN where text is expected"),
        ("comparison", PAIR, {**PAIR, "prompt": 7}, "'prompt' holds the number 7 where text is expected"),
        ("comparison", PAIR, {**PAIR, "chosen": [m("assistant", "x")]}, "one of 'chosen' and 'rejected' is text"),
        ("comparison", PAIR, {"chosen": "Paris ", "rejected": "London"}, "text without a 'prompt'"),
        ("comparison", PAIR, {**PAIR, "margin": "wide"}, "'margin' is 'wide'; expected a finite number"),
        ("comparison", PAIR, {**PAIR, "margin": math.inf}, "expected a finite number"),
        (
            "comparison",
            PAIR,
            {"chosen": [m("user", "q"), m("assistant", "x")], "rejected": [m("user", "q")]},
            "no answer from the assistant",
        ),
        (
            "comparison",
            PAIR,
            {"chosen": [m("user", "p"), m("assistant", "x")], "rejected": [m("user", "q"), m("assistant", "x")]},
            "no user turn",
        ),
        (
            "comparison",
            PAIR,
            {"chosen": [*CHAT[:3], m("user", "q"), m("assistant", "x")], "rejected": CHAT},
            "'chosen' holds a user turn after the common beginning",
        ),
        (
            "comparison",
            {"chosen": HH + "x", "rejected": HH + "y"},
            {"chosen": HH + "x", "rejected": HH.replace("q", "p") + "y"},
            "differ before their last answer",
        ),
        (
            "comparison",
            {"chosen": HH + "x", "rejected": HH + "y"},
            {"chosen": HH + "x\n\nHuman: more", "rejected": HH + "y"},
            "'chosen' is not a transcript",
        ),
        ("demonstration", ALPACA, {"instruction": "q", "output": " "}, "'output' is blank"),
        ("demonstration", ALPACA, {"instruction": "q", "output": None}, "no 'output'"),
        ("demonstration", ALPACA, {"instruction": " ", "output": "x"}, "nothing to answer"),
        ("demonstration", ALPACA, {**ALPACA, "history": ["q"]}, "'history' has to be a list"),
        ("demonstration", TALK, {"messages": "hello"}, "'messages' holds text where a list of messages is expected"),
        ("demonstration", TALK, {"messages": ["hello"]}, "message 1 is text; expected an object"),
        ("demonstration", TALK, {"messages": []}, "no user turn"),
        ("demonstration", TALK, {"messages": [m("user", "q")]}, "the last message is from the user"),
        ("demonstration", TALK, {"messages": [m("assistant", "x")]}, "begins with the assistant"),
        ("demonstration", TALK, {"messages": [m("user", " "), m("assistant", "x")]}, "no user turn with text"),
        ("demonstration", TALK, {"messages": [m("user", "q"), m("assistant", "")]}, "assistant turn is blank"),
        ("demonstration", TALK, {"messages": [m("wizard", "q"), m("assistant", "x")]}, "has the role 'wizard'"),
        ("demonstration", TALK, {"messages": [m("user", "q"), m("tool", "x")]}, "is a tool turn"),
        ("demonstration", TALK, {"messages": [{"content": "q"}]}, "has no role"),
        ("demonstration", TALK, {"messages": [m("user", 3), m("assistant", "x")]}, "holds the number 3 where text"),
        ("demonstration", TALK, {"messages": [m("user", ["q"]), m("assistant", "x")]}, "holds a list where text"),
        ("demonstration", {"text": "x"}, {"text": [1]}, "'text' holds a list where text is expected"),
        (
            "demonstration",
            {"prompt": "q", "completion": "x"},
            {"prompt": "q", "completion": "\n"},
            "'completion' is blank",
        ),
        ("prompt", {"prompt": "q"}, {"prompt": " "}, "no prompt to answer"),
    ],
)
def test_a_bad_row_is_named_and_the_good_one_beside_it_is_kept(
    kind: ExampleKind, good: Row, bad: Row, message: str
) -> None:
    src = source(good, bad)
    converted = to_examples(src, detect(source(good)).format, kind)
    assert [example.origin.row for example in converted.examples] == [1]
    assert [fault.origin.row for fault in converted.faults.rows] == [2]
    with pytest.raises(DataError, match=rf"f\.json:2: .*{message}"):
        converted.faults.stop("stop")


def test_many_faults_are_one_error_that_lists_five_and_counts_all() -> None:
    rows = [{"instruction": "q", "output": ""} for _ in range(12)]
    with pytest.raises(DataError) as raised:
        to_examples(source(*rows), format_named("alpaca"), "demonstration").faults.stop("do this")
    lines = str(raised.value).splitlines()
    assert [line.split(":")[1] for line in lines[:5]] == ["1", "2", "3", "4", "5"]
    assert lines[5:] == ["... and 7 more", "12 rows cannot be used", "do this"]


def test_a_prompt_is_never_guessed_from_how_two_texts_begin() -> None:
    with pytest.raises(DataError, match="text without a 'prompt'"):
        read_as("comparison", {"chosen": "The cat sat", "rejected": "The car stopped"})


def test_chosen_answers_serve_as_demonstrations() -> None:
    assert read_as("demonstration", PAIR) == [Demonstration("q", "x", AT)]


def test_a_comparison_serves_as_two_judgements() -> None:
    assert read_as("judgement", PAIR) == [Judgement("q", "x", True, AT), Judgement("q", "y", False, AT)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR, Prompt("q", {"chosen": "x", "rejected": "y"}, AT)),
        ({"prompt": "q", "answer": 4}, Prompt("q", {"answer": 4}, AT)),
        ({**ALPACA, "input": "i"}, Prompt((u("q\ni"),), {"output": "x"}, AT)),
        ({"messages": CHAT}, Prompt((*CHAT_PROMPT, a("a1"), u("q2")), {}, AT)),
        ({"messages": [m("user", "q")]}, Prompt((u("q"),), {}, AT)),
        ({"prompt": "q", "completion": "x", "label": 1}, Prompt("q", {"completion": "x", "label": 1}, AT)),
    ],
)
def test_every_row_with_a_prompt_serves_as_one_with_its_other_columns(row: Row, expected: Prompt) -> None:
    assert read_as("prompt", row) == [expected]


def test_every_conversion_is_told_in_plain_words() -> None:
    for kind, words in (
        ("demonstration", "its chosen answer"),
        ("judgement", "two judgements"),
        ("prompt", "only the prompts"),
    ):
        (note,) = to_examples(source(PAIR), detect(source(PAIR)).format, kind).notes  # type: ignore[arg-type]
        assert words in note
    assert to_examples(source(PAIR), detect(source(PAIR)).format, "comparison").notes == ()


def test_the_desirable_answers_of_judgements_serve_as_demonstrations() -> None:
    good = {"prompt": "q", "completion": "x", "label": True}
    read = source(good, {**good, "completion": "y", "label": False})
    found = to_examples(read, detect(read).format, "demonstration")
    assert [(example.prompt, example.completion) for example in found.examples] == [("q", "x")]  # type: ignore[union-attr]
    assert found.notes == ("f.json: each desirable answer is used as a demonstration; 1 row left out",)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (ALPACA, "comparison"),
        (ALPACA, "judgement"),
        ({"text": "x"}, "prompt"),
        ({"prompt": "q", "completion": "x", "label": 1}, "comparison"),
        ({"prompt": "q"}, "demonstration"),
    ],
)
def test_what_the_rows_do_not_say_is_not_made_up(row: Row, kind: ExampleKind) -> None:
    with pytest.raises(DataError, match=rf"f\.json: rows are .* but dpo needs {kind}s"):
        to_examples(source(row), detect(source(row)).format, kind, needed_by="dpo")


def test_the_guess_names_the_format_and_its_columns() -> None:
    row: Row = {"instruction": "q", "input": "", "output": "x", "id": 3}
    assert detect(source(row)).text == "guessed format: alpaca (columns instruction, input, output)"


def test_unknown_columns_are_listed_with_the_formats_that_are_known() -> None:
    with pytest.raises(DataError, match=r"no known format has the columns question, response.*data\.columns") as raised:
        detect(source({"question": "q", "response": "x"}))
    for format in FORMATS:
        assert f"{format.name}: " in str(raised.value)


def test_chosen_without_rejected_in_every_row_points_to_kto() -> None:
    with pytest.raises(DataError, match=r"f\.json:1: record has 'chosen' but no 'rejected'.*use kto"):
        detect(source({"prompt": "q", "chosen": "x", "rejected": None}))


def test_the_recipe_knows_every_format_by_name() -> None:
    assert set(get_args(FormatName)) == {format.name for format in FORMATS}


def test_two_prompts_have_one_key_exactly_when_they_are_the_same() -> None:
    words = ["q", "user: q", (u("q"),), (u("q"), u("")), (a("q"),), (u("q\nuser: "),)]
    keys = [prompt_key(Demonstration(w, "x", AT)) for w in words]
    assert len(set(keys)) == len(words)
    assert keys == [prompt_key(Comparison(w, "x", "y", None, Origin("g", 9))) for w in words]
    assert prompt_key(Demonstration("", "x", AT)) != prompt_key(Demonstration("", "y", AT))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
NAMES = ["prompt", "completion", "label", "chosen", "rejected", "messages", "conversations", "instruction", "output"]


@given(
    row=st.dictionaries(st.sampled_from([*NAMES, "input", "history", "system", "margin", "text"]), JUNK),
    format=st.sampled_from([format for format in FORMATS if not format.scored]),
)
def test_any_row_becomes_an_example_or_a_named_fault(row: Row, format: Format) -> None:
    converted = to_examples(source(row), format, format.kind)
    assert len(converted.examples) + len(converted.faults.rows) == 1
