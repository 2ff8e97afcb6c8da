"""Files and hub sets → records: raw rows that know where they came from. The user's files are only ever read."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from truing.core.errors import DataError, MachineError, suggest
from truing.core.trees import Origin
from truing.data.faults import counted
from truing.data.readers import MAX_UNPACKED, choose_reader, count_whole_rows

MAX_RATIO, FREE_UNPACKED = 200, 2**26
"""Beyond so many bytes a gzip may be so many times its size, which no text is: the worst of bombs is 1,000 times."""

_PIECE = 2**16
"""Bytes unpacked at a time, so that what stands before a fault is kept."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?::[\w.-]+)?")
_DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".txt", ".gz")


@dataclass(frozen=True, slots=True)
class Record:
    """A raw row and where it came from."""

    values: dict[str, object]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Source:
    """One file or hub set, read."""

    name: str
    """As the recipe names it."""
    sha256: str
    """Of the bytes on disk; of the rows where they came from the hub."""
    records: tuple[Record, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that any row has, in the order met."""
        return tuple(dict.fromkeys(name for record in self.records for name in record.values))


def read(path: str) -> Source:
    """Read a file, or a hub set where `path` is an id and no such file exists.

    Raises DataError naming file and row for everything that is wrong with its form.
    """
    place = Path(path)
    try:
        is_folder, is_file = place.is_dir(), place.is_file()
    except OSError as fault:  # a name that is too long, a folder that may not be entered
        raise DataError(f"{path[:200]}: cannot be looked up: {fault.strerror}") from None
    if is_folder:
        raise DataError(_folder_message(place, path))
    if is_file:
        return _read_file(place, path)
    if _HUB_ID.fullmatch(path) and not path.lower().endswith(_DATA_SUFFIXES) and not place.parent.is_dir():
        return _read_hub(path)
    raise DataError(f"{path}: no such file{_near(place)}")


def rename_columns(source: Source, columns: Mapping[str, str]) -> Source:
    """Give the file's columns our names: `columns` maps our name to the file's."""
    present = source.columns
    for ours, theirs in columns.items():
        if theirs not in present:
            raise DataError(
                f"{source.name}: data.columns says that '{ours}' is called '{theirs}', but the file has no such column"
                f"{suggest(theirs, present)}"
            )
    names = {theirs: ours for ours, theirs in columns.items()}
    hidden = set(columns)  # a column of the file under a name that is given to another one
    renamed = [
        {names.get(k, k): v for k, v in record.values.items() if k in names or k not in hidden}
        for record in source.records
    ]
    records = tuple(Record(values, r.origin) for values, r in zip(renamed, source.records, strict=True))
    return Source(source.name, source.sha256, records)


def _read_file(place: Path, name: str) -> Source:
    try:
        raw = place.read_bytes()
    except OSError as fault:
        raise MachineError(f"{name}: cannot be read: {fault.strerror or fault}") from None
    content = _unpack(raw, name) if raw.startswith(b"\x1f\x8b") else raw
    if not content.strip():
        raise DataError(f"{name}: the file is empty")
    rows = choose_reader(name, content)(content, name)
    if not rows:
        raise DataError(f"{name}: the file holds no rows")
    records = tuple(Record(values, Origin(name, number)) for number, values in rows)
    return Source(name, hashlib.sha256(raw).hexdigest(), records)


def _unpack(raw: bytes, name: str) -> bytes:
    """Unpack a gzip of one or several members; one that ends early says how many whole rows it held."""
    out = bytearray()
    stream = zlib.decompressobj(wbits=31)
    position = 0
    while position < len(raw):
        piece = raw[position : position + _PIECE]
        try:
            out += stream.decompress(piece)
        except zlib.error as fault:
            raise DataError(f"{name}: not a sound gzip file: {_whole(name, out)}; {fault}") from None
        if len(out) > MAX_UNPACKED:
            raise DataError(f"{name}: unpacks to more than {MAX_UNPACKED // 2**30} GiB; unpack it and split it")
        if len(out) > max(FREE_UNPACKED, MAX_RATIO * len(raw)):
            raise DataError(
                f"{name}: unpacks to over {MAX_RATIO} times its size, as no data does; if you know it, unpack it first"
            )
        position += len(piece) - len(stream.unused_data)
        while stream.eof and position < len(raw) and raw[position] == 0:
            position += 1
        if stream.eof and position < len(raw):
            stream = zlib.decompressobj(wbits=31)
    if not stream.eof:
        raise DataError(f"{name}: the gzip file ends early: {_whole(name, out)}; copy or download it again")
    return bytes(out)


def _whole(name: str, content: bytes | bytearray) -> str:
    return f"{counted(count_whole_rows(name, bytes(content)), 'whole row')} could be read before the fault"


def _near(place: Path) -> str:
    if not place.parent.is_dir():
        return f" (nor the folder {place.parent})"
    names = sorted(entry.name for entry in place.parent.iterdir() if entry.is_file())
    near = difflib.get_close_matches(place.name, names, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(repr(str(place.with_name(name))) for name in near)}?"
    data = [name for name in names if name.lower().endswith(_DATA_SUFFIXES)]
    return f"; the folder holds {', '.join(data[:8])}" if data else ""


def _folder_message(place: Path, path: str) -> str:
    names = sorted(e.name for e in place.iterdir() if e.is_file() and e.name.lower().endswith(_DATA_SUFFIXES))
    if not names:
        return f"{path}: is a folder, and it holds no data file; expected .json, .jsonl, .csv, .parquet or .txt"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{path}: is a folder; name a file in it: {', '.join(names[:8])}{more}"


def _read_hub(path: str) -> Source:
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: no such file here; to read it from the hub instead, install the extra: pip install 'truing[hub]'"
        ) from None
    name, _, split = path.partition(":")
    try:
        table = datasets.load_dataset(name, split=split or "train")
        rows = [dict(row) for row in table]
    except (OSError, ValueError, RuntimeError, LookupError) as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise DataError(f"{path}: no such file here, and the hub did not give it: {reason}") from None
    if not rows:
        raise DataError(f"{path}: the hub set holds no rows")
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    records = tuple(Record(row, Origin(path, number)) for number, row in enumerate(rows, start=1))
    return Source(path, digest.hexdigest(), records)
