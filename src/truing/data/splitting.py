"""One file → a train and a test file of the same rows, with every prompt on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from truing.core.errors import DataError
from truing.data.dataset import held_out_keys
from truing.data.examples import Judgement, Words, prompt_key, words_key
from truing.data.faults import Faults, RowError, counted
from truing.data.formats import Format
from truing.data.records import Record, Source, read
from truing.data.rewriting import MEND, Reading, formula_note
from truing.data.scores import Scored
from truing.data.writers import Target, write_rows


@dataclass(frozen=True, slots=True)
class Keyed:
    """A row as it stands in the file, with what decides its side."""

    record: Record
    key: str
    """Of its prompt."""
    prompt: Words
    label: bool | None


def keyed_rows(source: Source, named: Source, format: Format) -> tuple[Keyed, ...]:
    """Read the prompt of every row of `named`, which is `source` with our names of columns.

    Raises DataError naming the rows that cannot be read.
    """
    found = []
    faults = Faults()
    for record, renamed in zip(source.records, named.records, strict=True):
        try:
            row = format.read(renamed)
        except RowError as fault:
            faults.add(fault)
            continue
        key = words_key(row.prompt) if isinstance(row, Scored) else prompt_key(row)
        found.append(Keyed(record, key, row.prompt, row.label if isinstance(row, Judgement) else None))
    faults.stop(MEND)
    return tuple(found)


def choose_tested(rows: Sequence[Keyed], share: float, seed: int, together: Mapping[str, str]) -> frozenset[str]:
    """Choose the prompts to test on by a hash of each, so that a row stays where it is when others are added.

    Prompts with desirable, undesirable and both answers are chosen apart, so that each is on both sides where there
    are two such prompts. `together` gives some prompts another's key, whose side they take.
    """
    labels: dict[str, set[bool | None]] = {}
    leader = {row.key: together.get(row.key, row.key) for row in rows}
    for row in rows:
        labels.setdefault(leader[row.key], set()).add(row.label)
    if len(labels) < 2:
        raise DataError("all rows have one prompt, which cannot be on both sides; nothing is written")
    strata: dict[frozenset[bool | None], list[str]] = {}
    for key, found in labels.items():
        strata.setdefault(frozenset(found), []).append(key)
    salted = {key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest() for key in labels}
    out = {salt for keys in _two_each(strata.values()) for salt in held_out_keys([salted[key] for key in keys], share)}
    return frozenset(key for key, first in leader.items() if salted[first] in out)


def _two_each(strata: Iterable[list[str]]) -> list[list[str]]:
    """The strata that can be on both sides; prompts that are alone in theirs go to the largest."""
    largest, *others = sorted(strata, key=len, reverse=True)
    alone = [key for keys in others if len(keys) < 2 for key in keys]
    return [[*largest, *alone], *(keys for keys in others if len(keys) >= 2)]


def split(
    path: str,
    train: Path,
    test: Path,
    reading: Reading,
    *,
    share: float,
    seed: int,
    force: bool,
    together: Mapping[str, str] | None = None,
) -> list[str]:
    """Write a file's rows, unchanged, to `train` and `test`; returns what is to be told, a sentence a line."""
    targets = [Target.of(target, [path], force=force) for target in (train, test)]
    if train.resolve() == test.resolve():
        raise DataError(f"{train}: is named for both sides; name two files")
    source = read(path)
    named, guess = reading.understand(source)
    rows = keyed_rows(source, named, guess.format)
    held = choose_tested(rows, share, seed, together or {})
    sides = ([row for row in rows if row.key not in held], [row for row in rows if row.key in held])
    written = [(target, [row.record for row in side]) for target, side in zip(targets, sides, strict=True)]
    write_rows(written)
    told = [f"{path}: {counted(len(rows), 'row')}, {guess.text}"]
    told += [_side(target, side) for target, side in zip(targets, sides, strict=True)]
    return told + [note for target, records in written for note in formula_note(target, records)]


def _side(target: Target, rows: Sequence[Keyed]) -> str:
    labelled = [row.label for row in rows if row.label is not None]
    kinds = f", {sum(labelled):,} desirable and {len(labelled) - sum(labelled):,} undesirable" if labelled else ""
    return f"{target.path}: {counted(len(rows), 'row')} of {counted(len({row.key for row in rows}), 'prompt')}{kinds}"
