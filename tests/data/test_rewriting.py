"""Rows in one format written in another say the same, or what is lost is told and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truing.cli.main import cli
from truing.core.errors import DataError
from truing.core.trees import Origin
from truing.data.conversion import row_of
from truing.data.examples import KIND_OF, Comparison, Demonstration, Example, Judgement, Message, Messages, Prompt
from truing.data.formats import detect, format_named, to_examples
from truing.data.notations import WRITTEN
from truing.data.records import read
from truing.data.rewriting import Reading, as_rows, convert
from truing.data.scores import ScoreRule

HERE = Origin("in.jsonl", 1)
WORD = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda text: text.strip())
PLAIN = st.sampled_from(["yes", "no, never", "two\nlines", "Ünïcode", "=1"])
SPEECH = WORD | PLAIN


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    """System or not, any number of exchanges before the last question."""
    system = draw(st.lists(st.builds(Message, st.just("system"), SPEECH), max_size=1))
    exchanges = draw(st.lists(st.tuples(SPEECH, SPEECH), max_size=2))
    turns = [Message(role, text) for pair in exchanges for role, text in zip(("user", "assistant"), pair, strict=True)]
    return (*system, *turns, Message("user", draw(SPEECH)))


ANSWERS = st.builds(lambda text: (Message("assistant", text),), SPEECH)


@st.composite
def demonstrations(draw: st.DrawFn) -> Demonstration:
    if draw(st.booleans()):
        return Demonstration(draw(st.just("") | WORD), draw(WORD), HERE)
    whole = (*draw(conversations()), *draw(ANSWERS))
    first = next(n for n, turn in enumerate(whole) if turn.role == "assistant")
    return Demonstration(whole[:first], whole[first:], HERE)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    raw = draw(st.booleans())
    asked = draw(WORD) if raw else draw(conversations())
    chosen, rejected = draw(st.lists(WORD if raw else ANSWERS, min_size=2, max_size=2, unique=True))
    margin = draw(st.none() | st.floats(-5, 5))
    return Comparison(asked, chosen, rejected, margin, HERE)


JUDGEMENTS = st.builds(Judgement, WORD, WORD, st.booleans(), st.just(HERE)) | st.builds(
    Judgement, conversations(), ANSWERS, st.booleans(), st.just(HERE)
)
PROMPTS = st.builds(
    Prompt, WORD | conversations(), st.dictionaries(st.sampled_from("xyz"), st.integers() | WORD), st.just(HERE)
)
EXAMPLES: dict[str, st.SearchStrategy[Example]] = {
    "demonstration": demonstrations(),
    "comparison": comparisons(),
    "judgement": JUDGEMENTS,
    "prompt": PROMPTS,
}
QUICK = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def put(folder: Path, examples: list[Example], name: str = "in.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row_of(example)) + "\n" for example in examples), encoding="utf-8")
    return file


def run(source: Path, to: str, target: Path, *, lossy: bool = False, rule: ScoreRule | None = None) -> list[str]:
    return convert([str(source)], to, target, Reading(), rule or ScoreRule(), lossy=lossy, force=True)


def said(file: Path, format: str) -> list[tuple[object, ...]]:
    """What the rows of a file say, apart from where they stand."""
    found = to_examples(read(str(file)), format_named(format), format_named(format).kind)
    assert not found.faults.rows
    return [tuple(getattr(e, name) for name in type(e).__slots__ if name != "origin") for e in found.examples]


@pytest.mark.parametrize("to", list(WRITTEN))
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
@given(data=st.data())
@QUICK
def test_there_and_back_says_the_same_unless_a_loss_is_told(
    to: str, suffix: str, data: st.DataObject, tmp_path: Path
) -> None:
    goal = format_named(to)
    example = data.draw(EXAMPLES[goal.kind])
    source, there, back = put(tmp_path, [example]), tmp_path / f"there{suffix}", tmp_path / "back.jsonl"
    there.unlink(missing_ok=True)
    home = detect(read(str(source))).format.name
    before = said(source, home)
    try:
        run(source, to, there)
    except DataError:
        assert not there.exists()
        return
    run(there, home, back)
    assert said(back, home) == before


@pytest.mark.parametrize("to", [name for name in WRITTEN if name not in ("hh", "text", "prompt")])
@given(data=st.data())
@QUICK
def test_a_conversation_is_held_by_every_format_for_conversations(to: str, data: st.DataObject) -> None:
    kind = format_named(to).kind
    example = data.draw(EXAMPLES[kind].filter(lambda e: not isinstance(e.prompt, str)))
    rows = as_rows([example], format_named(to), "jsonl")
    assert (rows.lost, rows.refused) == ({}, {})
    assert len(rows.records) == 1


ASKED = (Message("user", "q"),)
SYSTEM = (Message("system", "s"), *ASKED)
X, Y = (Message("assistant", "x"),), (Message("assistant", "y"),)
TALK = (*X, *ASKED, *Y)


@pytest.mark.parametrize(
    ("example", "to", "suffix", "loss"),
    [
        (Demonstration("q", "x", HERE), "messages", "jsonl", "lost: that it is raw text"),
        (Demonstration("q", "x", HERE), "text", "jsonl", "lost: where the prompt ends"),
        (Demonstration((*ASKED, *X, *ASKED), Y, HERE), "messages", "jsonl", "lost: where the prompt ends"),
        (Comparison(SYSTEM, X, Y, None, HERE), "hh", "jsonl", "lost: the system message"),
        (Comparison(ASKED, X, (Message("assistant", "y "),), None, HERE), "hh", "jsonl", "lost: white space around"),
        (Prompt("q", {"target": 3}, HERE), "prompt", "csv", "lost: the types of the columns for rewards"),
        (Demonstration("", "x", HERE), "messages", "jsonl", "left out: 1 row .*plain text has no turns"),
        (Demonstration(ASKED, X, HERE), "text", "jsonl", "left out: 1 row .*only by a chat template"),
        (Demonstration((*ASKED, *ASKED), X, HERE), "alpaca", "jsonl", "left out: 1 row .*do not take turns"),
        (Comparison(ASKED, (*X, *X), Y, None, HERE), "alpaca_comparison", "jsonl", "left out: 1 row .*several turns"),
        (
            Comparison(ASKED, (Message("assistant", "x\n\nHuman: p"),), Y, None, HERE),
            "hh",
            "jsonl",
            "left out: 1 row .*not a transcript",
        ),
        (Demonstration(ASKED, X, HERE), "messages", "csv", "left out: 1 row .*CSV holds nothing else"),
    ],
)
def test_a_loss_is_named_and_refused_and_with_lossy_told(
    example: Example, to: str, suffix: str, loss: str, tmp_path: Path
) -> None:
    other = {
        "demonstration": Demonstration("p", "z", HERE) if to == "text" else Demonstration(ASKED, X, HERE),
        "comparison": Comparison(ASKED, Y, X, None, HERE),
        "prompt": Prompt("p", {"target": "t"}, HERE),
    }[KIND_OF[type(example)]]
    source, target = put(tmp_path, [example, other]), tmp_path / f"out.{suffix}"
    if target.suffix == ".csv" and to == "messages":
        source = put(tmp_path, [example])
    with pytest.raises(DataError, match=f"(?s)cannot hold all.*{loss}.*--lossy"):
        run(source, to, target)
    assert not target.exists()
    if target.suffix == ".csv" and to == "messages":
        with pytest.raises(DataError, match="no row can be written as messages"):
            run(source, to, target, lossy=True)
        return
    told = "\n".join(run(source, to, target, lossy=True))
    assert loss.partition(" ")[0] in told
    left_out = loss.startswith("left out")
    assert len(said(target, to)) == (1 if left_out else 2)


def test_a_margin_that_some_rows_lack_is_not_invented_in_csv(tmp_path: Path) -> None:
    rows: list[Example] = [Comparison("q", "x", "y", 1.5, HERE), Comparison("q", "x", "z", None, HERE)]
    target = tmp_path / "out.csv"
    source = put(tmp_path, rows)
    run(source, "comparison", target)
    assert [margin for *_, margin in said(target, "comparison")] == [1.5, None]


def test_a_comparison_becomes_what_its_kind_serves(tmp_path: Path) -> None:
    source = put(tmp_path, [Comparison("q", "x", "y", 2.0, HERE)])
    source.write_text(source.read_text().replace('"margin"', '"target": "x", "margin"'))
    run(source, "prompt_completion", tmp_path / "a.jsonl")
    assert said(tmp_path / "a.jsonl", "prompt_completion") == [("q", "x")]
    told = run(source, "judgement", tmp_path / "b.jsonl")
    assert said(tmp_path / "b.jsonl", "judgement") == [("q", "x", True), ("q", "y", False)]
    assert any("two judgements" in line for line in told)
    run(source, "prompt", tmp_path / "c.jsonl")
    assert said(tmp_path / "c.jsonl", "prompt") == [("q", {"target": "x"})]
    assert detect(read(str(tmp_path / "c.jsonl"))).format.name == "prompt"


def test_of_judgements_the_desirable_become_demonstrations(tmp_path: Path) -> None:
    source = put(tmp_path, [Judgement("q", "x", True, HERE), Judgement("q", "y", False, HERE)])
    told = run(source, "prompt_completion", tmp_path / "a.jsonl")
    assert said(tmp_path / "a.jsonl", "prompt_completion") == [("q", "x")]
    assert any("1 row left out" in line for line in told)


def test_nothing_is_made_up(tmp_path: Path) -> None:
    source = put(tmp_path, [Demonstration("q", "x", HERE)])
    with pytest.raises(DataError, match=r"rows are demonstrations .* but --to comparison needs comparisons"):
        run(source, "comparison", tmp_path / "a.jsonl")


def test_scores_become_pairs_above_a_margin_and_judgements_by_a_threshold(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    answers = [{"response": text, "overall_score": score} for text, score in (("x", 9), ("y", 8), ("z", 2))]
    file.write_text(json.dumps({"prompt": "q", "completions": answers}) + "\n")
    run(file, "comparison", tmp_path / "a.csv", rule=ScoreRule(margin=2))
    assert said(tmp_path / "a.csv", "comparison") == [("q", "x", "z", 7.0), ("q", "y", "z", 6.0)]
    run(file, "judgement", tmp_path / "b.csv", rule=ScoreRule(threshold=8))
    assert [label for *_, label in said(tmp_path / "b.csv", "judgement")] == [True, True, False]
    with pytest.raises(DataError, match="nothing is left to write: the rows hold no comparison"):
        run(file, "comparison", tmp_path / "c.csv", rule=ScoreRule(margin=8))


def test_bad_rows_stop_a_conversion_and_point_to_clean(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "q", "completion": "x"}\n{"prompt": "q", "completion": " "}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:2: 'completion' is blank.*\n.*truing data clean"):
        run(file, "messages", tmp_path / "a.jsonl", lossy=True)


def test_columns_that_nothing_reads_are_told(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"instruction": "q", "output": "x", "id": 3, "source": "s"}\n')
    told = run(file, "messages", tmp_path / "a.jsonl")
    assert any("columns id, source; they are left out" in line for line in told)


def test_the_command_converts_and_its_errors_name_the_remedy(tmp_path: Path) -> None:
    source = put(tmp_path, [Comparison("=q", "x", "y", None, HERE)])
    asked = ["data", "convert", str(source), "--to", "comparison", "--output", str(tmp_path / "a.csv")]
    done = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert done.exit_code == 0
    assert "1 cell of" in done.output
    assert "formula" in done.output
    again = CliRunner().invoke(cli, asked)
    assert isinstance(again.exception, Exception)
    assert "--force" in str(again.exception)
    wrong = CliRunner().invoke(cli, [*asked, "--force", "--to", "mesages"])
    assert "did you mean 'messages'" in str(wrong.exception)
    odd = CliRunner().invoke(cli, [*asked, "--columns", "completion"])
    assert odd.exit_code == 2
    assert "OURS=THEIRS" in odd.output
