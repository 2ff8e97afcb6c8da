"""Written rows are read back as they were, a file is whole or not there, and nothing is overwritten unasked."""

from __future__ import annotations

import gzip
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truing.core import files
from truing.core.errors import DataError, InputError, MachineError
from truing.core.trees import Origin
from truing.data.faults import RowError
from truing.data.records import Record, read
from truing.data.writers import Target, count_formulas, stored, write_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", " ", "a,b", 'say "hi"', "two\nlines", "\r\n", "\r", "=1+1", "+x", "-1", "@cmd", "\ufeffx", "\x00", "\u2028"]
)
QUICK = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def records(*rows: dict[str, object]) -> tuple[Record, ...]:
    return tuple(Record(row, Origin("in.json", n)) for n, row in enumerate(rows, start=1))


def written(folder: Path, name: str, rows: tuple[Record, ...]) -> list[dict[str, object]]:
    target = Target.of(folder / name, [], force=True)
    write_rows([(target, rows)])
    return [record.values for record in read(str(target.path)).records]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.parquet", "a.json.gz", "a.jsonl.gz", "a.csv.gz"])
@given(rows=st.lists(st.fixed_dictionaries({"prompt": TEXT, "komma,": TEXT}), min_size=1, max_size=4))
@QUICK
def test_text_is_read_back_as_it_was_written(name: str, rows: list[dict[str, object]], tmp_path: Path) -> None:
    assert written(tmp_path, name, records(*rows)) == rows


NESTED = {"turns": [{"role": "user", "content": "q"}], "score": 0.1, "count": 3, "good": True, "none": None}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet", "a.jsonl.gz"])
def test_values_keep_their_types(name: str, tmp_path: Path) -> None:
    assert written(tmp_path, name, records(NESTED, NESTED)) == [NESTED, NESTED]


def test_csv_is_read_back_as_what_is_said_to_be_stored(tmp_path: Path) -> None:
    (row,) = records({"a": True, "b": 0.1, "c": None, "d": 7, "e": "x"})
    assert stored(row, "csv").values == {"a": "true", "b": "0.1", "c": "", "d": "7", "e": "x"}
    assert written(tmp_path, "a.csv", (row,)) == [stored(row, "csv").values]


def test_a_formula_stays_data_and_is_counted(tmp_path: Path) -> None:
    rows = records(
        {"prompt": "=HYPERLINK(1)", "completion": "-1 is less than 0"}, {"prompt": "1=1", "completion": "@a"}
    )
    assert count_formulas(rows) == 3
    assert written(tmp_path, "a.csv", rows) == [row.values for row in rows]


def test_a_text_of_any_length_is_read_back_from_csv(tmp_path: Path) -> None:
    rows = records({"text": "long " * 100_000})
    assert written(tmp_path, "a.csv", rows) == [rows[0].values]


def test_columns_that_some_rows_lack_are_those_of_all(tmp_path: Path) -> None:
    rows = records({"a": "x"}, {"b": "y"})
    assert written(tmp_path, "a.jsonl", rows) == [{"a": "x"}, {"b": "y"}]
    assert written(tmp_path, "a.csv", rows) == [{"a": "x", "b": ""}, {"a": "", "b": "y"}]
    assert written(tmp_path, "a.parquet", rows) == [{"a": "x", "b": None}, {"a": None, "b": "y"}]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a.csv", ["x"], "in.json:1: 'v' is neither text nor a number, and CSV holds nothing else"),
        ("a.csv", float("nan"), "in.json:1: 'v' is neither"),
        ("a.json", float("nan"), "in.json:1: cannot be written as JSON"),
        ("a.jsonl", date(2020, 1, 1), "in.json:1: cannot be written as JSON"),
        ("a.jsonl", "\ud800", "in.json:1: cannot be written as JSON"),
    ],
)
def test_what_a_file_cannot_hold_is_named_by_row(name: str, value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(RowError, match=message):
        written(tmp_path, name, records({"v": value}))
    assert list(tmp_path.iterdir()) == []


def test_parquet_has_one_type_a_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet: Parquet has one type for each column.*write \.jsonl"):
        written(tmp_path, "a.parquet", records({"v": "text"}, {"v": ["list"]}))


def test_packed_bytes_do_not_depend_on_the_clock(tmp_path: Path) -> None:
    written(tmp_path, "a.jsonl.gz", records({"v": 1}))
    first = (tmp_path / "a.jsonl.gz").read_bytes()
    assert first[4:8] == b"\0\0\0\0"
    assert gzip.decompress(first) == b'{"v": 1}\n'


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("in.json", "is also read from"),
        ("link.json", "is also read from"),
        ("other.json", "exists already; give --force"),
        ("a.txt", "cannot tell what to write"),
        ("a", "cannot tell what to write"),
        ("a.parquet.gz", "packed already"),
        ("folder.json", "is a folder"),
    ],
)
def test_a_target_is_refused_before_anything_is_read(name: str, message: str, tmp_path: Path) -> None:
    for file in ("in.json", "other.json"):
        (tmp_path / file).write_text("[]")
    (tmp_path / "link.json").symlink_to(tmp_path / "in.json")
    (tmp_path / "folder.json").mkdir()
    for force in (False, *([] if "force" in message else [True])):
        with pytest.raises(InputError, match=message):
            Target.of(tmp_path / name, [str(tmp_path / "in.json")], force=force)


def test_a_disk_that_fails_leaves_no_file_and_no_half_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail_second(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail_second)
    both = [(Target.of(tmp_path / name, [], force=False), records({"v": 1})) for name in ("a.json", "b.json")]
    with pytest.raises(MachineError, match=r"cannot write .*a\.json, .*b\.json: No space left"):
        write_rows(both)
    assert list(tmp_path.iterdir()) == []
