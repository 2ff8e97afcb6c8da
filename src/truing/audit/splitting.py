"""One file → a train and a test file of the same rows, with every prompt on one side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from truing.audit.near import SIMILAR, near_pairs
from truing.audit.words import WordLists
from truing.core.errors import InputError
from truing.data.faults import counted
from truing.data.records import read
from truing.data.rewriting import Reading, formula_note
from truing.data.splitting import Keyed, choose_tested, keyed_rows
from truing.data.writers import Target, write_rows


def split(
    path: str, train: Path, test: Path, reading: Reading, *, share: float, seed: int, near: bool, force: bool
) -> list[str]:
    """Write a file's rows, unchanged, to `train` and `test`; returns what is to be told, a sentence a line.

    With `near`, prompts that are nearly the same are kept on one side; else those on both sides are told.
    """
    targets = [Target.of(target, [path], force=force) for target in (train, test)]
    if train.resolve() == test.resolve():
        raise InputError(f"{train}: is named for both sides; name two files")
    source = read(path)
    named, guess = reading.understand(source)
    rows = keyed_rows(source, named, guess.format)
    families = near_families(rows)
    held = choose_tested(rows, share, seed, families if near else {})
    sides = ([row for row in rows if row.key not in held], [row for row in rows if row.key in held])
    written = [(target, [row.record for row in side]) for target, side in zip(targets, sides, strict=True)]
    write_rows(written)
    told = [f"{path}: {counted(len(rows), 'row')}, {guess.text}"]
    told += [_side(target, side) for target, side in zip(targets, sides, strict=True)]
    parted = {families[key] for key in held if key in families} & {
        families[row.key] for row in sides[0] if row.key in families
    }
    if parted:
        told.append(
            f"{counted(len(parted), 'family')} of prompts with {SIMILAR:.0%} of their words in common stand on both "
            "sides; give --near to keep them together"
        )
    return told + [note for target, records in written for note in formula_note(target, records)]


def near_families(rows: Sequence[Keyed]) -> dict[str, str]:
    """The prompts that are nearly the same as others: the key of each → the key of its family's first."""
    prompts = {row.key: row.text for row in rows}
    keys = list(prompts)
    first: dict[str, str] = {}

    def root(key: str) -> str:
        while first.get(key, key) != key:
            key = first[key]
        return key

    for one, other in near_pairs(WordLists.of(list(prompts.values())), [(n,) for n in range(len(keys))]):
        first.setdefault(keys[one], keys[one])
        first.setdefault(keys[other], keys[other])
        first[root(keys[other])] = root(keys[one])
    return {key: root(key) for key in first}


def _side(target: Target, rows: Sequence[Keyed]) -> str:
    labelled = [row.label for row in rows if row.label is not None]
    kinds = f", {sum(labelled):,} desirable and {len(labelled) - sum(labelled):,} undesirable" if labelled else ""
    return f"{target.path}: {counted(len(rows), 'row')} of {counted(len({row.key for row in rows}), 'prompt')}{kinds}"
