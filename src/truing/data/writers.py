"""Rows → JSON, JSONL, CSV and Parquet files, which are read back as the same rows."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from truing.core.errors import DataError, InputError, MachineError
from truing.core.files import write_whole
from truing.data.faults import RowError
from truing.data.records import Record

FileKind = Literal["json", "jsonl", "csv", "parquet"]

_KINDS: Mapping[str, FileKind] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would run."""


@dataclass(frozen=True, slots=True)
class Target:
    """A file that rows will be written to."""

    path: Path
    kind: FileKind
    packed: bool
    """Written as gzip."""

    @classmethod
    def of(cls, path: Path, inputs: Sequence[str], *, force: bool) -> Target:
        """A target by its suffix. Raises InputError where it is an input, where it exists, and for unknown suffixes."""
        name = path.name.lower()
        packed = name.endswith(".gz")
        suffix = Path(name.removesuffix(".gz")).suffix
        if suffix not in _KINDS:
            raise InputError(f"{path}: cannot tell what to write; expected .json, .jsonl, .csv or .parquet (or .gz)")
        if packed and suffix == ".parquet":
            raise InputError(f"{path}: Parquet is packed already; leave .gz out")
        if any(_same(path, Path(given)) for given in inputs):
            raise InputError(f"{path}: is also read from, and the file you give is never rewritten; name another")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file in it")
        if path.exists() and not force:
            raise InputError(f"{path}: exists already; give --force to replace it")
        return cls(path, _KINDS[suffix], packed)


def stored(record: Record, kind: FileKind) -> Record:
    """The row as it will be read back: CSV keeps text alone. Raises RowError for values that it cannot hold."""
    if kind != "csv":
        return record
    return Record({name: _cell(value, name, record) for name, value in record.values.items()}, record.origin)


def write_rows(files: Sequence[tuple[Target, Sequence[Record]]]) -> None:
    """Write files, all of them or none. Raises RowError naming a row that a file cannot hold."""
    contents = {target.path: _content(target, records) for target, records in files}
    try:
        for path in contents:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(contents)
    except OSError as failure:
        names = ", ".join(str(path) for path in contents)
        raise MachineError(f"cannot write {names}: {failure.strerror or failure}") from failure


def count_formulas(records: Sequence[Record]) -> int:
    """Count the texts that a spreadsheet would take for formulas."""
    values = [value for record in records for value in record.values.values()]
    return sum(isinstance(value, str) and value.startswith(_FORMULA) for value in values)


def _content(target: Target, records: Sequence[Record]) -> bytes:
    if target.kind == "parquet":
        return _parquet(target.path, records)
    content = _csv(records) if target.kind == "csv" else _json(records, target.kind)
    return gzip.compress(content, mtime=0) if target.packed else content


def _json(records: Sequence[Record], kind: FileKind) -> bytes:
    """One row a line, in either form."""
    lines = [_line(record) for record in records]
    return b"[\n" + b",\n".join(lines) + b"\n]\n" if kind == "json" else b"".join(line + b"\n" for line in lines)


def _line(record: Record) -> bytes:
    try:
        return json.dumps(record.values, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as fault:
        raise RowError(record.origin, "no JSON", f"cannot be written as JSON: {fault}; write .parquet") from None


def _csv(records: Sequence[Record]) -> bytes:
    """Every cell stands in quotes, so that line ends, commas and blank cells are read back as they were.

    Cells that begin like a formula are data and are not changed: an apostrophe before them would be trained on.
    """
    text = io.StringIO(newline="")
    names = _columns(records)
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(names)
    for record in records:
        cells = stored(record, "csv").values
        writer.writerow([cells.get(name, "") for name in names])
    return text.getvalue().encode("utf-8")


def _cell(value: object, name: str, record: Record) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and math.isfinite(value):
        return repr(value)
    raise RowError(
        record.origin, "no CSV", f"'{name}' is neither text nor a number, and CSV holds nothing else; write .jsonl"
    )


def _parquet(path: Path, records: Sequence[Record]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = _columns(records)
    try:
        table = pa.Table.from_pylist([{name: record.values.get(name) for name in names} for record in records])
        content = io.BytesIO()
        pq.write_table(table, content)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as fault:
        reason = str(fault).splitlines()[0]
        raise DataError(f"{path}: Parquet has one type for each column: {reason}; write .jsonl") from None
    return content.getvalue()


def _columns(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.values))


def _same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)
