from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.tiny import byte_level
from truing.core.errors import DataError, RecipeError
from truing.core.settings import parse
from truing.core.trees import ExampleKind, Origin
from truing.data.dataset import Dataset, held_out_keys, load
from truing.data.settings import DataSettings

Row = dict[str, object]


def put(folder: Path, name: str, rows: list[Row]) -> str:
    place = folder / name
    place.write_text(json.dumps(rows))
    return str(place)


def run(kind: ExampleKind, template: str | None = None, needed_by: str = "sft", **options: object) -> Dataset:
    tokenizer = byte_level()
    config = DataSettings.model_validate(options)
    return load(
        config, kind, tokenizer, template, frozenset({tokenizer.eos_token_id}), lambda *at: None, needed_by=needed_by
    )


def text_of(dataset: Dataset) -> list[str]:
    return [byte_level().decode(tree.prompt) for tree in dataset.train]


def rows(count: int) -> list[Row]:
    return [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(count)]


def test_trees_come_in_the_order_of_the_files_and_the_limit_counts_over_all(tmp_path: Path) -> None:
    first, second = put(tmp_path, "a.json", rows(3)), put(tmp_path, "b.json", rows(6)[3:])
    assert text_of(run("demonstration", path=[first, second])) == ["q0", "q1", "q2", "q3", "q4", "q5"]
    assert text_of(run("demonstration", path=[first, second], limit=4)) == ["q0", "q1", "q2", "q3"]
    assert text_of(run("demonstration", path=[first, second], limit=2)) == ["q0", "q1"]


def test_the_report_says_what_was_read_dropped_cut_and_repeated(tmp_path: Path) -> None:
    good: list[Row] = [{"prompt": "q" * 3, "completion": "x"}, {"prompt": "q", "completion": "y" * 20}]
    bad: list[Row] = [
        {"prompt": "q", "completion": ""},
        {"prompt": "q", "completion": 3},
        {"prompt": "q", "completion": ""},
    ]
    path = put(tmp_path, "a.json", [*good, *bad, good[0]])
    report = run("demonstration", path=path, on_bad_row="drop", max_length=8).report.as_json()
    assert json.loads(json.dumps(report)) == report
    assert report["files"] == [
        {
            "name": path,
            "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            "format": "prompt_completion",
            "guess": "guessed format: prompt_completion (columns prompt, completion)",
            "rows": 6,
        }
    ]
    assert report["rows"] == {"read": 6, "used": 3}
    assert report["trees"] == {"train": 3, "held_out": 0}
    assert report["dropped"] == {"empty answer": {path: [3, 5]}, "wrong type": {path: [4]}}
    assert report["duplicates"] == 1
    cut = len(byte_level()("y" * 20)["input_ids"]) + 1 - 7
    assert report["truncated"] == {"prompts": 0, "completions": 1, "tokens": cut}
    assert report["tokens"] == {
        "prompt": {"p50": 3, "p95": 3, "p99": 3, "max": 3},
        "completion": {"p50": 2, "p95": 7, "p99": 7, "max": 7},
        "supervised": 2 + 7 + 2,
    }
    assert "raw text is used as it stands, without a template: 3 rows" in report["notes"]


def test_bad_rows_stop_the_run_unless_they_may_be_dropped(tmp_path: Path) -> None:
    path = put(tmp_path, "a.json", [*rows(1), {"prompt": "q"}])
    with pytest.raises(DataError, match=r"a\.json:2: the row has no 'completion'\n.*data\.on_bad_row: drop"):
        run("demonstration", path=path)
    assert len(run("demonstration", path=path, on_bad_row="drop").train) == 1


def test_a_file_of_bad_rows_alone_stops_even_if_they_may_be_dropped(tmp_path: Path) -> None:
    path = put(tmp_path, "a.json", [{"prompt": "q", "completion": ""}] * 3)
    with pytest.raises(DataError, match=r"a\.json:1: 'completion' is empty(.|\n)*No row is left to train on"):
        run("demonstration", path=path, on_bad_row="drop")


def test_data_of_the_wrong_kind_name_the_objective_and_what_it_needs(tmp_path: Path) -> None:
    path = put(tmp_path, "a.json", [{"instruction": "q", "output": "x"}])
    expected = r"rows are demonstrations \(alpaca: instruction, output\) but dpo needs comparisons: columns chosen"
    with pytest.raises(DataError, match=expected):
        run("comparison", path=path, needed_by="dpo")


def test_a_named_format_and_renamed_columns_are_used(tmp_path: Path) -> None:
    path = put(tmp_path, "a.json", [{"question": "q", "text": "x"}])
    found = run("demonstration", path=path, columns={"prompt": "question", "completion": "text"})
    assert text_of(found) == ["q"]
    named = run("demonstration", path=path, format="text")
    assert named.report.files[0].guess == "format: text (given in the recipe)"


def test_pairs_lost_to_truncation_are_counted_and_the_others_kept(tmp_path: Path) -> None:
    alike: Row = {"prompt": "q", "chosen": "the same beginning 1", "rejected": "the same beginning 2"}
    apart: Row = {"prompt": "q", "chosen": "yes, this one it is", "rejected": "no, that one it is"}
    path = put(tmp_path, "a.json", [alike, apart])
    report = run("comparison", path=path, max_length=5).report
    assert report.dropped == {"identical after truncation": (Origin(path, 1),)}
    assert any("dropped 1 row, identical after truncation" in note for note in report.notes)
    assert any("every row is longer than data.max_length 5" in note for note in report.notes)
    only = put(tmp_path, "b.json", [alike])
    with pytest.raises(DataError, match=r"No row is left to train on: the shortest takes \d+ tokens"):
        run("comparison", path=only, max_length=5)


def test_no_prompt_is_on_both_sides_of_a_holdout_and_every_row_on_one(tmp_path: Path) -> None:
    many: list[Row] = [{"prompt": f"q{n % 20}", "completion": f"a{n}"} for n in range(100)]
    found = run("demonstration", path=put(tmp_path, "a.json", many), holdout=0.3)
    train, held_out = ({byte_level().decode(t.prompt) for t in side} for side in (found.train, found.held_out))
    assert train.isdisjoint(held_out)
    assert len(train | held_out) == 20
    assert len(found.train) + len(found.held_out) == 100
    assert found.report.held_out == len(found.held_out) > 0


def test_rows_of_plain_text_are_split_one_by_one(tmp_path: Path) -> None:
    found = run("demonstration", path=put(tmp_path, "a.json", [{"text": f"t{n}"} for n in range(60)]), holdout=0.5)
    assert 15 < len(found.held_out) < 45


KEYS = st.lists(st.binary(max_size=3).map(lambda b: hashlib.sha256(b).hexdigest()), min_size=2, unique=True)


@given(keys=KEYS, more=KEYS, fraction=st.floats(0.01, 0.99))
def test_something_is_held_out_never_all_and_added_rows_move_no_other(
    keys: list[str], more: list[str], fraction: float
) -> None:
    out = held_out_keys(keys, fraction)
    assert 0 < len(out) < len(keys)
    assert held_out_keys(keys[::-1], fraction) == out
    wider = held_out_keys(keys + more, fraction)
    below = {key for key in keys if int(key, 16) < fraction * 2**256}
    if 0 < len(below) < len(keys) and len(wider) < len(set(keys + more)) - 1:
        assert wider & set(keys) == out


def test_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    path = put(tmp_path, "a.json", [{"prompt": "q", "completion": "x"}, {"prompt": "q", "completion": "y"}])
    with pytest.raises(DataError, match="all rows have one prompt"):
        run("demonstration", path=path, holdout=0.5)


def test_a_file_for_evaluation_is_reported_beside_and_may_share_no_prompt(tmp_path: Path) -> None:
    train = put(tmp_path, "train.json", rows(4))
    other = put(tmp_path, "eval.json", rows(6)[4:])
    found = run("demonstration", path=train, eval_path=other, limit=1)
    assert (len(found.train), len(found.held_out)) == (1, 2)
    assert found.report.evaluation is not None
    assert found.report.evaluation.files[0].name == other
    shared = put(tmp_path, "shared.json", [*rows(6)[4:], {"prompt": "q2", "completion": "else"}])
    with pytest.raises(
        DataError, match=r"data\.eval_path has prompts.*in 1 row \(.*train\.json:3 and .*shared\.json:3"
    ):
        run("demonstration", path=train, eval_path=shared)


def test_prompts_keep_their_words_and_columns_for_rewards(tmp_path: Path) -> None:
    path = put(tmp_path, "a.json", [{"prompt": "2+2=", "answer": 4}])
    found = run("prompt", path=path)
    assert found.train[0].completions == ()
    assert found.prompts[Origin(path, 1)].columns == {"answer": 4}
    assert found.prompts[Origin(path, 1)].prompt == "2+2="


def test_text_put_into_a_named_template_is_told(tmp_path: Path) -> None:
    notes = run("demonstration", "alpaca", path=put(tmp_path, "a.json", rows(2))).report.notes
    assert "raw text was put into template 'alpaca' as user and assistant turns: 2 rows" in notes


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "'path' is missing"),
        ({"path": "a", "max_lenght": 3}, "did you mean 'max_length'"),
        ({"path": "a", "max_length": 1}, "'max_length'"),
        ({"path": "a", "holdout": 1.0}, "'holdout'"),
        ({"path": "a", "holdout": 0.1, "eval_path": "b"}, "two ways to evaluate"),
        ({"path": "  "}, "expected the name of a file"),
        ({"path": []}, "expected the name of a file"),
        ({"path": "a", "format": "alpacca"}, "'format'"),
        ({"path": "a", "limit": 0}, "'limit'"),
    ],
)
def test_a_wrong_setting_names_its_key(raw: Row, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(DataSettings, raw)


def test_reading_data_imports_no_torch() -> None:
    code = "import sys, truing.data.dataset; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
