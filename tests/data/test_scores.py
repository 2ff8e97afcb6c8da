"""Scored, ranked and compared answers become pairs, judgements and demonstrations."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.core.errors import DataError
from truing.core.trees import ExampleKind, Origin
from truing.data.examples import Comparison, Demonstration, Judgement, Message, Prompt
from truing.data.formats import Converted, detect, to_examples
from truing.data.records import Record, Source
from truing.data.scores import ScoreRule

Row = dict[str, object]
ONE, TWO, THREE = (Origin("f.jsonl", n) for n in (1, 2, 3))


def read_as(kind: ExampleKind, *rows: Row, rule: ScoreRule | None = None) -> Converted:
    records = tuple(Record(row, Origin("f.jsonl", n)) for n, row in enumerate(rows, start=1))
    source = Source("f.jsonl", "", records)
    return to_examples(source, detect(source).format, kind, rule=rule or ScoreRule())


def u(text: str) -> Message:
    return Message("user", text)


def a(text: str) -> Message:
    return Message("assistant", text)


def talk(*turns: str) -> list[Row]:
    return [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]


ULTRA: Row = {
    "source": "s",
    "instruction": "q",
    "completions": [
        {"model": "m1", "response": "poor", "overall_score": 3, "critique": "c"},
        {"model": "m2", "response": "fine", "overall_score": 8.5},
        {"model": "m3", "response": "as fine", "overall_score": 8.5},
    ],
}
HELP: tuple[Row, Row] = (
    {"prompt": "q", "response": "good", "helpfulness": 4, "verbosity": 1},
    {"prompt": "q", "response": "bad", "helpfulness": 1, "verbosity": 2},
)


KAGGLE: Row = {
    "id": "1",
    "model_a": "m1",
    "model_b": "m2",
    "prompt": '["q"]',
    "response_a": '["x"]',
    "response_b": '["y"]',
    "winner_model_a": "0",
    "winner_model_b": "1",
    "winner_tie": "0",
}
STEER2: Row = {
    "split": "train",
    "prompt": "q",
    "response_1": "x",
    "response_2": "y",
    "preference_strength": -2,
    "preference_statement": "Response 1 is better than Response 2.",
}
STEER3: Row = {
    "domain": "general",
    "language": "english",
    "context": [{"role": "user", "content": "q"}],
    "response1": "x",
    "response2": "y",
    "overall_preference": 3,
    "individual_preference": [],
}


@pytest.mark.parametrize(
    ("rows", "name", "expected"),
    [
        (
            (ULTRA,),
            "scores",
            [
                Comparison((u("q"),), (a("fine"),), (a("poor"),), 5.5, ONE),
                Comparison((u("q"),), (a("as fine"),), (a("poor"),), 5.5, ONE),
            ],
        ),
        (HELP, "scores", [Comparison("q", "good", "bad", 3.0, TWO)]),
        (
            ({"prompt": "q", "responses": ["x", "y"], "scores": [0.25, 1]},),
            "scores",
            [Comparison("q", "y", "x", 0.75, ONE)],
        ),
        (
            ({"prompt": "q", "answers": [{"answer": "x", "rank": 2}, {"answer": "y", "rank": 1}]},),
            "ranks",
            [Comparison("q", "y", "x", None, ONE)],
        ),
        (
            ({"prompt": "q", "responses": ["x", "y"], "ranks": [1, 2]},),
            "ranks",
            [Comparison("q", "x", "y", None, ONE)],
        ),
        (
            ({"prompt": "q", "response_a": "x", "response_b": "y", "winner": "model_b"},),
            "arena",
            [Comparison("q", "y", "x", None, ONE)],
        ),
        (
            (
                {
                    "conversation_a": talk("p", "o", "q", "x"),
                    "conversation_b": talk("p", "o", "q", "y"),
                    "winner": "model_a",
                },
            ),
            "arena",
            [Comparison((u("p"), a("o"), u("q")), (a("x"),), (a("y"),), None, ONE)],
        ),
        ((KAGGLE,), "arena", [Comparison((u("q"),), (a("y"),), (a("x"),), None, ONE)]),
        (
            ({"prompt": "q", "response_a": "x", "response_b": "y", "winner_model_a": 1, "winner_model_b": 0},),
            "arena",
            [Comparison("q", "x", "y", None, ONE)],
        ),
        ((STEER2,), "preference", [Comparison("q", "x", "y", 2.0, ONE)]),
        ((STEER3,), "preference", [Comparison((u("q"),), (a("y"),), (a("x"),), 3.0, ONE)]),
    ],
)
def test_answers_that_differ_become_pairs(rows: tuple[Row, ...], name: str, expected: list[Comparison]) -> None:
    source = Source("f.jsonl", "", tuple(Record(row, ONE) for row in rows))
    assert detect(source).format.name == name
    assert list(read_as("comparison", *rows).examples) == expected


@pytest.mark.parametrize("winner", ["tie", "tie (bothbad)", "both_bad"])
def test_a_tie_prefers_nothing(winner: str) -> None:
    row: Row = {"prompt": "q", "response_a": "x", "response_b": "y", "winner": winner}
    for kind in ("comparison", "demonstration"):
        found = read_as(kind, row)
        assert found.examples == ()
        assert found.faults.rows == []
    assert read_as("prompt", row).examples[0].prompt == "q"


@pytest.mark.parametrize(
    "tie",
    [
        {**KAGGLE, "winner_model_b": "0", "winner_tie": "1"},
        {**STEER2, "preference_strength": 0},
        {**STEER3, "overall_preference": 0},
    ],
)
def test_ties_are_left_out_and_counted(tie: Row) -> None:
    found = read_as("comparison", tie, tie)
    assert (found.examples, found.faults.rows) == ((), [])
    assert found.notes[0].endswith("; 2 ties left out")


def test_winners_of_two_rows_are_not_compared() -> None:
    """Where x beat y and v beat w, that x is better than w is nothing that anybody said."""
    rows: list[Row] = [
        {"prompt": "q", "response_a": one, "response_b": other, "winner": "a"} for one, other in ("xy", "vw")
    ]
    assert read_as("comparison", *rows).examples == (
        Comparison("q", "x", "y", None, ONE),
        Comparison("q", "v", "w", None, TWO),
    )


def test_a_strength_is_no_quality_to_judge_by() -> None:
    with pytest.raises(DataError, match="which answer is better, not which is good"):
        read_as("judgement", STEER2, rule=ScoreRule(threshold=1))


def test_a_least_margin_holds_for_strengths_too() -> None:
    assert read_as("comparison", STEER2, rule=ScoreRule(margin=3)).examples == ()
    assert len(read_as("comparison", STEER2, rule=ScoreRule(margin=2)).examples) == 1


@given(
    numbers=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    margin=st.integers(0, 4),
)
def test_pairs_are_all_that_differ_by_the_margin(numbers: list[int], margin: int) -> None:
    rows: list[Row] = [{"prompt": "q", "response": f"answer {n}", "score": s} for n, s in enumerate(numbers)]
    found = read_as("comparison", *rows, rule=ScoreRule(margin=margin)).examples
    wanted = sum(abs(x - y) >= max(margin, 1) for x, y in itertools.combinations(numbers, 2))
    assert len(found) == wanted
    for pair in found:
        assert isinstance(pair, Comparison)
        scores = [numbers[int(str(words).split()[1])] for words in (pair.chosen, pair.rejected)]
        assert pair.margin == scores[0] - scores[1] >= max(margin, 1)


def test_a_threshold_judges_every_answer() -> None:
    found = read_as("judgement", *HELP, rule=ScoreRule(threshold=4)).examples
    assert found == (Judgement("q", "good", True, ONE), Judgement("q", "bad", False, TWO))


def test_without_a_threshold_scores_judge_nothing() -> None:
    with pytest.raises(DataError, match=r"only with a threshold.*--threshold"):
        read_as("judgement", *HELP)


def test_ranks_say_what_is_better_and_not_what_is_good() -> None:
    with pytest.raises(DataError, match="which answer is better, not which is good"):
        read_as("judgement", {"prompt": "q", "responses": ["x"], "ranks": [1]}, rule=ScoreRule(threshold=0))


def test_the_best_answer_to_each_prompt_is_a_demonstration() -> None:
    other: Row = {"prompt": "p", "response": "alone", "helpfulness": 0}
    found = read_as("demonstration", *reversed(HELP), other).examples
    assert found == (Demonstration("q", "good", TWO), Demonstration("p", "alone", THREE))


def test_scored_rows_have_prompts_with_their_columns() -> None:
    assert read_as("prompt", HELP[0]).examples == (
        Prompt("q", {"response": "good", "helpfulness": 4, "verbosity": 1}, ONE),
    )


def test_a_log_of_thumbs_is_judgements() -> None:
    rows: list[Row] = [
        {"prompt": "q", "response": "x", "thumbs": "up"},
        {"prompt": "q", "response": "y", "thumbs": "👎"},
    ]
    assert read_as("judgement", *rows).examples == (Judgement("q", "x", True, ONE), Judgement("q", "y", False, TWO))


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (HELP[0], {**HELP[0], "helpfulness": "much"}, "no finite number under score"),
        (HELP[0], {**HELP[0], "response": ""}, "an answer' is empty"),
        (ULTRA, {**ULTRA, "completions": []}, "'completions' has to be a list"),
        (ULTRA, {**ULTRA, "completions": ["x"]}, "'completions' answer 1 is not an object"),
        (ULTRA, {**ULTRA, "completions": [{"overall_score": 1}]}, "'completions' answer 1 has no text"),
        (
            {"prompt": "q", "responses": ["x"], "scores": [1]},
            {"prompt": "q", "responses": ["x"], "scores": [1, 2]},
            "holds 1 answers, 'scores' 2 numbers",
        ),
        (
            {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "tie"},
            {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "nobody"},
            "'winner' is 'nobody'; expected model_a, model_b or tie",
        ),
        (KAGGLE, {**KAGGLE, "winner_model_a": "1"}, "one has to be 1 and the others 0"),
        (KAGGLE, {**KAGGLE, "response_a": '["x", "z"]'}, "'prompt' holds 1 turns, 'response_a' 2"),
        (KAGGLE, {**KAGGLE, "response_a": "[null]"}, "blank"),
        (
            KAGGLE,
            {**KAGGLE, "prompt": '["q", "p"]', "response_a": '["x", "z"]', "response_b": '["y", "z"]'},
            "holds a user turn after the common beginning",
        ),
        (STEER3, {**STEER3, "overall_preference": "much"}, "'overall_preference' is 'much'; expected a finite number"),
        (STEER2, {**STEER2, "response_2": None}, "no 'response2'"),
        (
            {"conversation_a": talk("q", "x"), "conversation_b": talk("q", "y"), "winner": "tie"},
            {"conversation_a": talk("q", "x", "p", "z"), "conversation_b": talk("q", "y"), "winner": "a"},
            "holds a user turn after the common beginning",
        ),
        (
            {"conversation_a": talk("q", "x"), "conversation_b": talk("q", "y"), "winner": "tie"},
            {"conversation_a": talk("q", "x"), "conversation_b": talk("p", "y"), "winner": "a"},
            "no user turn with text",
        ),
    ],
)
def test_a_bad_row_is_named_and_the_good_one_beside_it_is_kept(good: Row, bad: Row, message: str) -> None:
    (fault,) = read_as("comparison", good, bad).faults.rows
    assert fault.origin == TWO
    with pytest.raises(DataError, match=message):
        raise fault
