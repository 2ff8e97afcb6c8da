"""JSON, JSONL, CSV, Parquet and plain-text bytes → rows, with every fault of a file named by its line or row.

A reader gives `(row number, values)` pairs: an element of a list counts from 1; JSONL, CSV and text count lines.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from truing.core.errors import DataError

Row = tuple[int, dict[str, object]]
Reader = Callable[[bytes, str], list[Row]]

MAX_UNPACKED = 4 * 2**30
"""Bytes that a file may unpack to; one of 4 MB can hold 4 GB of nothing."""

PORTION = 2**28
"""Bytes of a Parquet table that are unpacked at a time, at most."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may stand for half a character; only such text is searched for halves that stand alone."""

_OBJECTS = re.compile(rb'(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"')
"""How JSON rows begin, under whatever name."""


def choose_reader(name: str, content: bytes) -> Reader:
    """Pick the reader for a file by its name and, where names lie (`.json` that holds JSONL), by its content."""
    suffix = name.lower().removesuffix(".gz").rpartition(".")[2]
    start = content[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if content.startswith(b"PAR1") or suffix == "parquet":
        return read_parquet
    if suffix == "csv":
        return read_csv
    if suffix == "txt" and not _OBJECTS.match(content):
        return read_text
    if start == b"[":
        return read_json
    if suffix == "jsonl" or suffix == "ndjson":
        return read_jsonl
    if start == b"{" or suffix == "json":
        return read_jsonl if _first_line_is_a_row(content) else read_json
    raise DataError(
        f"{name}: cannot tell what kind of file this is; expected .json, .jsonl, .csv, .parquet or .txt (or .gz)"
    )


def read_json(content: bytes, name: str) -> list[Row]:
    """Read a list of objects, or `{"data": [...]}`."""
    text = _text(content, name)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as fault:
        raise DataError(f"{name}:{fault.lineno}: malformed JSON: {_lower(fault.msg)} (column {fault.colno})") from None
    except RecursionError:
        raise DataError(f"{name}: JSON nested too deep to be data; expected a list of objects") from None
    except ValueError as fault:
        raise DataError(f"{name}: {fault}") from None
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise DataError(f"{name}: expected a list of objects, or an object with such a list under 'data'")
    suspicious = _SURROGATE.search(text) is not None
    return [(row, _checked(item, f"{name}:{row}", suspicious)) for row, item in enumerate(value, start=1)]


def read_jsonl(content: bytes, name: str) -> list[Row]:
    """Read one object a line; blank lines are passed over."""
    lines = _text(content, name).split("\n")
    return [(n, _parse_line(line, f"{name}:{n}")) for n, line in enumerate(lines, start=1) if line.strip()]


def read_text(content: bytes, name: str) -> list[Row]:
    """Read plain text: one row with a column `text` for each passage, passages being parted by blank lines."""
    return list(_passages(_text(content, name)))


def read_csv(content: bytes, name: str) -> list[Row]:
    """Read comma-separated values under a header line; all values stay strings."""
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # Python's own limit is 128 KiB, short of a book
    return list(_csv_rows(_text(content, name), name))


def read_parquet(content: bytes, name: str) -> list[Row]:
    """Read a Parquet table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(io.BytesIO(content)) as file:
            names = file.schema_arrow.names
            rows = _unpacked(file, name) if len(set(names)) == len(names) else []
    except (pa.ArrowException, ValueError, TypeError, LookupError, OSError, OverflowError) as fault:
        raise DataError(f"{name}: not a readable Parquet file: {str(fault).splitlines()[0]}") from None
    _refuse_duplicates(names, f"{name}: the table")
    return [(row, dict(values)) for row, values in enumerate(rows, start=1)]


def _unpacked(file: Any, name: str) -> list[dict[str, object]]:
    """The rows of an open Parquet file, in portions, since a small one can hold a large text a million times."""
    groups = range(file.metadata.num_row_groups)
    largest = max((file.metadata.row_group(n).total_byte_size for n in groups), default=0)  # of any cell, at most
    rows: list[dict[str, object]] = []
    size = 0
    for batch in file.iter_batches(batch_size=min(max(PORTION // max(largest, 1), 1), 10_000)):
        portion = batch.to_pylist()
        size += _letters(portion)
        if size > MAX_UNPACKED:
            raise DataError(f"{name}: unpacks to more than {MAX_UNPACKED // 2**30} GiB; split it")
        rows += portion
    return rows


def _letters(value: object) -> int:
    """Bytes of all text in a value, roughly: what a dictionary in the file stands for, not what it takes there."""
    size, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, list | tuple):
            size += 8 * len(item)
            todo += item
    return size


def count_whole_rows(name: str, content: bytes) -> int:
    """Count the rows that stand complete in a file that was cut short."""
    text = content.decode("utf-8", errors="ignore")
    suffix = name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix == "csv":
        return _count_csv(text, name)
    if suffix == "parquet":
        return 0  # its index stands at the end
    if suffix == "txt":
        return max(0, sum(1 for _ in _passages(text)) - 1)  # the last may go on
    if text.lstrip().startswith("["):
        return _count_elements(text)
    count = 0
    for line in text.split("\n"):
        try:
            _parse_line(line, name)
        except DataError:
            continue
        count += 1
    return count


def _first_line_is_a_row(content: bytes) -> bool:
    """True where the first line is a whole object, unless it is the only one and holds the rows under 'data'."""
    filled = list(itertools.islice((line for line in io.BytesIO(content) if line.strip()), 2))
    try:
        value = json.loads(filled[0].decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not (len(filled) == 1 and isinstance(value.get("data"), list))


def _parse_line(line: str, where: str) -> dict[str, object]:
    try:
        value = json.loads(line, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as fault:
        raise DataError(f"{where}: malformed JSON: {_lower(fault.msg)} (column {fault.colno})") from None
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deep to be data; expected an object") from None
    except ValueError as fault:
        raise DataError(f"{where}: {fault}") from None
    return _checked(value, where, _SURROGATE.search(line) is not None)


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        byte = content[fault.start]
        raise DataError(
            f"{name}:{line}: not valid UTF-8 (byte 0x{byte:02x} at offset {fault.start}); save the file as UTF-8"
        ) from None


def _checked(value: object, where: str, suspicious: bool) -> dict[str, object]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with named columns, found {_kind(value)}")
    if suspicious and _has_lone_surrogate(value):
        raise DataError(f"{where}: text holds half a character (a lone surrogate, \\ud800 to \\udfff)")
    return value


def _has_lone_surrogate(value: object) -> bool:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            if any("\ud800" <= c <= "\udfff" for c in item):
                return True
        elif isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            todo += item
    return False


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; a value that is not a number cannot be learned from")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _refuse_duplicates(names: list[str], where: str) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{where} has the column '{twice[0]}' twice; rename one of them")


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    end = 0
    try:
        for fields in reader:
            line, end = end + 1, reader.line_num
            if not fields:
                continue
            if header is None:
                _refuse_duplicates(fields, f"{name}:{line}: the header")
                header = fields
                continue
            if len(fields) != len(header):
                raise DataError(f"{name}:{line}: {len(fields)} fields where the header names {len(header)} columns")
            yield line, dict(zip(header, fields, strict=True))
    except csv.Error as fault:
        raise DataError(f"{name}:{end + 1}: malformed CSV: {fault}") from None


def _passages(text: str) -> Iterator[Row]:
    passage: list[str] = []
    lines = text.split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            passage.append(line.rstrip("\r"))
        elif passage:
            yield number - len(passage), {"text": "\n".join(passage)}
            passage = []


def _count_csv(text: str, name: str) -> int:
    whole = text[: text.rfind("\n") + 1]
    count = 0
    rows = _csv_rows(whole, name)
    while True:
        try:
            next(rows)
        except (StopIteration, DataError):
            return count
        count += 1


def _count_elements(text: str) -> int:
    decoder = json.JSONDecoder()
    position = text.index("[") + 1
    count = 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        try:
            _, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return count
        count += 1
