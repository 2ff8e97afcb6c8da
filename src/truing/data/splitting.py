"""Which rows of a file are trained on and which are tested on, with every prompt on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from truing.core.errors import DataError
from truing.data.dataset import held_out_keys
from truing.data.examples import Demonstration, Judgement, Words, prompt_key, words_key
from truing.data.faults import Faults, RowError
from truing.data.formats import Format
from truing.data.records import Record, Source
from truing.data.rewriting import MEND
from truing.data.scores import Scored


@dataclass(frozen=True, slots=True)
class Keyed:
    """A row as it stands in the file, with what decides its side."""

    record: Record
    key: str
    """Of its prompt."""
    text: str
    """Of the prompt, all its turns; of plain text, the text itself."""
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
        words = row.completion if isinstance(row, Demonstration) and not row.prompt else row.prompt
        found.append(Keyed(record, key, _plain(words), row.label if isinstance(row, Judgement) else None))
    faults.stop(MEND)
    return tuple(found)


def _plain(words: Words) -> str:
    return words if isinstance(words, str) else "\n".join(turn.content for turn in words)


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
