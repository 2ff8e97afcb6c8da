from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truing.core.errors import DataError
from truing.core.trees import Origin
from truing.data import records
from truing.data.records import read, rename_columns

ROWS = [{"prompt": f"q{n}", "completion": f"a{n}\nü"} for n in range(5)]


def as_json(rows: list[dict[str, str]]) -> bytes:
    return json.dumps(rows, indent=2).encode()


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def put(folder: Path, name: str, content: bytes | str) -> str:
    place = folder / name
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(place)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.json", as_json),
        ("a.jsonl", as_jsonl),
        ("jsonl-inside.json", as_jsonl),
        ("list-inside.jsonl", as_json),
        ("under-data.json", lambda rows: json.dumps({"data": rows}).encode()),
        ("under-data-indented.json", lambda rows: json.dumps({"data": rows}, indent=1).encode()),
        ("with-bom.json", lambda rows: b"\xef\xbb\xbf" + as_json(rows)),
        ("a.csv", as_csv),
        ("a.parquet", as_parquet),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(
    tmp_path: Path, name: str, write: Callable[[list[dict[str, str]]], bytes], packed: bool
) -> None:
    content = write(ROWS)
    path = put(tmp_path, name + ".gz" * packed, gzip.compress(content) if packed else content)
    assert [record.values for record in read(path).records] == ROWS


def test_rows_are_counted_by_line_in_jsonl_and_csv_and_by_element_elsewhere(tmp_path: Path) -> None:
    spaced = put(tmp_path, "a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
    quoted = put(tmp_path, "a.csv", 'text,n\n"one\ntwo",1\nthree,2\n')
    listed = put(tmp_path, "a.json", json.dumps([{"text": "a"}, {"text": "b"}], indent=4))
    assert [record.origin for record in read(spaced).records] == [Origin(spaced, 1), Origin(spaced, 3)]
    assert [record.origin.row for record in read(quoted).records] == [2, 4]
    assert [record.origin.row for record in read(listed).records] == [1, 2]


def test_csv_values_stay_strings(tmp_path: Path) -> None:
    assert read(put(tmp_path, "a.csv", "prompt,label\n01,1\n")).records[0].values == {"prompt": "01", "label": "1"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "a.json: the file is empty"),
        ("a.jsonl", b" \n\n", "the file is empty"),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"prompt,completion\n", "holds no rows"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl:2: malformed JSON"),
        ("a.json", b'[\n{"a": 1},\n{"a": }\n]', "a.json:3: malformed JSON"),
        ("a.json", b'[{"a": 1}, 7]', "a.json:2: expected an object with named columns, found a number"),
        ("a.jsonl", b'{"a": 1}\nnull\n', "a.jsonl:2: expected an object with named columns, found null"),
        ("a.json", b'{"rows": [\n{"a": 1}]}', "expected a list of objects"),
        ("a.jsonl", b'{"a": NaN}', "a.jsonl:1: NaN is not JSON"),
        ("a.json", b'[{"a": -Infinity}]', "-Infinity is not JSON"),
        ("a.jsonl", b'{"a": 1e999}', "a.jsonl:1: the number 1e999 is too large"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "a.jsonl:1: "),
        ("a.jsonl", b'{"a": "ok"}\n{"a": ' + b"[" * 200_000, "a.jsonl:2: JSON nested too deep"),
        ("a.json", b"[" * 200_000, "a.json: JSON nested too deep"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', "a.jsonl:2: not valid UTF-8 \\(byte 0xff"),
        ("a.jsonl", b'{"a": "ok \\ud83d\\ude00"}\n{"a": [{"b": "\\ud83d"}]}', "a.jsonl:2: .*lone surrogate"),
        ("a.json", b'[{"a": "ok"}, {"\\udc00": 1}]', "a.json:2: .*lone surrogate"),
        ("a.csv", b"a,b,a\n1,2,3\n", "a.csv:1: the header has the column 'a' twice"),
        ("a.csv", b"a,b\n1,2\n3\n", "a.csv:3: 1 fields where the header names 2 columns"),
        ("a.csv", b'a,b\n1,"two\n', "a.csv:2: malformed CSV"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: not a readable Parquet file"),
        ("a.doc", b"once upon a time", "a.doc: cannot tell what kind of file"),
        ("a.txt", b"fine\n\nnot \xff", "a.txt:3: not valid UTF-8"),
        ("a.json.gz", b"\x1f\x8bno", "not a sound gzip|ends early"),
    ],
)
def test_a_faulty_file_is_named_with_its_row(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(put(tmp_path, name, content))


def test_passages_of_plain_text_are_rows_at_their_first_lines(tmp_path: Path) -> None:
    source = read(put(tmp_path, "a.txt", b"\xef\xbb\xbf[One]\r\ntwo\r\n \r\n\r\n  three\n\n"))
    assert [r.values for r in source.records] == [{"text": "[One]\ntwo"}, {"text": "  three"}]
    assert [r.origin.row for r in source.records] == [1, 5]


@pytest.mark.parametrize("write", [as_json, as_jsonl])
def test_rows_under_the_name_of_plain_text_stay_rows(
    tmp_path: Path, write: Callable[[list[dict[str, str]]], bytes]
) -> None:
    assert read(put(tmp_path, "a.txt", write([{"text": "x"}]))).records[0].values == {"text": "x"}


@pytest.mark.parametrize(("name", "write"), [("a.jsonl.gz", as_jsonl), ("a.json.gz", as_json), ("a.csv.gz", as_csv)])
def test_a_gzip_cut_short_says_how_many_whole_rows_it_held(
    tmp_path: Path, name: str, write: Callable[[list[dict[str, str]]], bytes]
) -> None:
    rows = [{"id": str(n), "text": f"row {n} " + "xyz"[n % 3] * (n % 50)} for n in range(2000)]
    packed = gzip.compress(write(rows), 1)
    cut = packed[: len(packed) // 2]
    there = zlib.decompressobj(wbits=31).decompress(cut).decode(errors="ignore")
    # Rows are in order and every one holds its number once, so the last number that is followed by another is whole.
    whole = max(n for n in range(2000) if f"row {n} " in there and f"row {n + 1} " in there) + 1
    with pytest.raises(DataError, match=r"ends early: ([\d,]+) whole rows") as raised:
        read(put(tmp_path, name, cut))
    said = int(str(raised.value).split("early: ")[1].split(" ")[0].replace(",", ""))
    assert said in (whole, whole + 1)  # the last row may have been cut behind its number or behind its end


def test_a_gzip_of_several_members_is_read_whole(tmp_path: Path) -> None:
    halves = gzip.compress(as_jsonl(ROWS[:2])) + gzip.compress(as_jsonl(ROWS[2:]))
    assert [r.values for r in read(put(tmp_path, "a.jsonl.gz", halves + b"\0" * 512)).records] == ROWS


def test_a_gzip_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_UNPACKED", 10**6)
    with pytest.raises(DataError, match="unpacks to more than"):
        read(put(tmp_path, "a.jsonl.gz", gzip.compress(b" " * 2 * 10**6)))


def test_a_missing_file_is_answered_with_near_names(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "x")
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file; did you mean '.*train\.jsonl'\?"):
        read(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match=r"the folder holds train\.jsonl"):
        read(str(tmp_path / "zzzzz.csv"))
    with pytest.raises(DataError, match="nor the folder"):
        read(str(tmp_path / "absent" / "zzzzz.csv"))
    with pytest.raises(DataError, match="cannot be looked up"):
        read("x" * 5000)


def test_a_folder_is_answered_with_the_files_in_it(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "x")
    put(tmp_path, "notes.md", "x")
    with pytest.raises(DataError, match=r"is a folder; name a file in it: train\.jsonl$"):
        read(str(tmp_path))


def test_a_hub_id_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'truing\[hub\]'"):
        read("some-org/some-name")


def test_a_hub_id_names_its_split_and_a_hub_out_of_reach_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, *, split: str) -> list[dict[str, str]]:
        asked.append((name, split))
        if name == "org/away":
            raise ConnectionError("no route\nlong trace")
        return ROWS

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert [r.origin for r in read("org/name:test").records][:2] == [
        Origin("org/name:test", 1),
        Origin("org/name:test", 2),
    ]
    assert len(read("org/name").records) == 5
    assert asked == [("org/name", "test"), ("org/name", "train")]
    with pytest.raises(DataError, match=r"the hub did not give it: no route$"):
        read("org/away")


def test_columns_are_renamed_and_a_name_that_is_not_there_is_refused(tmp_path: Path) -> None:
    source = read(put(tmp_path, "a.jsonl", '{"question": "q", "prompt": "other"}'))
    renamed = rename_columns(source, {"prompt": "question"})
    assert renamed.records[0].values == {"prompt": "q"}
    with pytest.raises(DataError, match="no such column; did you mean 'question'"):
        rename_columns(source, {"prompt": "qestion"})


def rows_or_complaint(path: str) -> bool:
    """True for rows, and for a DataError that names the file; any other exception passes through."""
    try:
        return len(read(path).records) > 0
    except DataError as fault:
        return path in str(fault)


ANY = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
NAMES = st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.parquet", "a.txt", "a.json.gz", "a.csv.gz"])
WHOLE = [as_json(ROWS), as_jsonl(ROWS), as_csv(ROWS), as_parquet(ROWS), gzip.compress(as_jsonl(ROWS))]


@ANY
@given(name=NAMES, content=st.binary(max_size=200) | st.text(max_size=100).map(lambda s: s.encode("utf-8", "replace")))
def test_arbitrary_bytes_give_records_or_a_data_error(tmp_path: Path, name: str, content: bytes) -> None:
    path = put(tmp_path, name, content)
    assert rows_or_complaint(path)


@settings(ANY, max_examples=150)
@given(
    name=NAMES,
    content=st.sampled_from(WHOLE),
    where=st.floats(0, 1, exclude_max=True),
    byte=st.none() | st.integers(0, 255),
)
def test_a_damaged_file_gives_records_or_a_data_error(
    tmp_path: Path, name: str, content: bytes, where: float, byte: int | None
) -> None:
    at = int(where * len(content))
    damaged = content[:at] if byte is None else content[:at] + bytes([byte]) + content[at + 1 :]
    path = put(tmp_path, name, damaged)
    assert rows_or_complaint(path)
    assert Path(path).read_bytes() == damaged
