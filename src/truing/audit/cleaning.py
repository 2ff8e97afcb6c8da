"""A file → a copy without the rows that a check found wrong, and a log of each: which row, which check, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from truing.audit.audit import Audit, Progress, audit
from truing.core.errors import DataError, InputError
from truing.core.trees import Origin
from truing.data.examples import Comparison, Example, Judgement, prompt_key
from truing.data.faults import counted
from truing.data.formats import Guess, to_examples
from truing.data.records import Record, Source, read
from truing.data.rewriting import Reading, formula_note
from truing.data.writers import Target, write_rows

Contradictions = Literal["drop", "majority"]

WHY: Mapping[str, str] = {
    "rows": "cannot be used",
    "roles": "has turns that do not fit",
    "mixed": "is of another kind than its file",
    "identical_pair": "prefers an answer to itself",
    "identical_after_cut": "prefers an answer to itself once both are cut",
    "no_target": "has nothing left to train on",
    "contradictions": "contradicts other rows",
    "duplicates": "repeats an earlier row",
    "near_duplicates": "nearly repeats an earlier row",
    "margin": "has a margin that is not above 0",
}
"""The checks whose rows are dropped, in the order in which they claim a row, and what such a row does."""

Key = tuple[str, object]


@dataclass(frozen=True, slots=True)
class Request:
    """What is cleaned, for what, and how far."""

    path: str
    reading: Reading
    purpose: str | None = None
    model: str | None = None
    template: str | None = None
    max_length: int = 1024
    near: bool = False
    """Drop near-duplicates too."""
    contradictions: Contradictions = "drop"
    """Drop all rows that contradict each other, or keep what most of them say."""


def clean(request: Request, output: Path, log: Path | None, *, force: bool, on_progress: Progress) -> list[str]:
    """Write the sound rows of a file, unchanged, and a log of the others; returns what is to be told.

    Raises DataError where the file cannot be read, or no row would be left.
    """
    target = Target.of(output, [request.path], force=force)
    logged = Target.of(log or _beside(output), [request.path], force=force)
    if logged.path.resolve() == target.path.resolve() or logged.kind != "jsonl":
        raise InputError(f"--log {logged.path}: expected a .jsonl file other than the output")
    source = read(request.path)
    named, guess = request.reading.understand(source)
    if guess.format.scored:
        raise DataError(
            f"{request.path}: rows are {guess.format.name}; make comparisons or judgements of them first with "
            "truing data convert"
        )
    dropped = _dropped(_audited(request, on_progress), request, named, guess)
    kept = [record for record in source.records if record.origin not in dropped]
    if not kept:
        raise DataError(f"{request.path}: no row would be left: {_counts(dropped)}")
    details = _details(named, guess)
    entries = [_entry(record.origin, dropped, details) for record in source.records if record.origin in dropped]
    write_rows([(target, kept), (logged, entries)])
    told = [f"{request.path}: {counted(len(source.records), 'row')}, {guess.text}"]
    told += [f"dropped {counted(count, 'row')}: {WHY[check]} ({check})" for check, count in _by_check(dropped).items()]
    told.append(f"{output}: {len(kept):,} of {counted(len(source.records), 'row')} kept; {logged.path} says why")
    return told + formula_note(target, kept)


def _beside(output: Path) -> Path:
    """The log of a copy.

    >>> _beside(Path("data/pairs.clean.jsonl.gz")).as_posix()
    'data/pairs.clean.dropped.jsonl'
    """
    return output.with_name(Path(output.name.removesuffix(".gz")).stem + ".dropped.jsonl")


def _audited(request: Request, on_progress: Progress) -> Audit:
    found = audit(
        [request.path],
        purpose=request.purpose,
        model=request.model,
        template=request.template,
        max_length=request.max_length,
        columns=request.reading.columns,
        format=request.reading.format,
        on_progress=on_progress,
    )
    for finding in found.findings:
        if finding.check in ("readable", "format", "template") and finding.level == "stop":
            raise DataError(f"{finding.sentence}\n{finding.remedy}")
    return found


def _dropped(found: Audit, request: Request, named: Source, guess: Guess) -> dict[Origin, str]:
    """The rows to be dropped, and the check of each."""
    rows = {finding.check: finding.rows for finding in found.findings}
    if not request.near:
        rows.pop("near_duplicates", None)
    if request.contradictions == "majority" and rows.get("contradictions"):
        rows["contradictions"] = outvoted(_examples_of(named, guess, rows["contradictions"]))
    dropped: dict[Origin, str] = {}
    for check in WHY:
        for origin in rows.get(check, ()):
            dropped.setdefault(origin, check)
    return dropped


def outvoted(examples: Sequence[Example]) -> tuple[Origin, ...]:
    """Of rows that contradict each other, those that do not say what most of them say of the same two answers.

    All rows go where as many say the contrary, and where what most say still runs in a circle.
    """
    votes = Counter(_statement(example) for example in examples)
    kept = [example for example in examples if votes[_statement(example)] > votes[_contrary(example)]]
    circular = _circular({_edge(example) for example in kept if isinstance(example, Comparison)})
    stays = {e.origin for e in kept if not (isinstance(e, Comparison) and _edge(e) in circular)}
    return tuple(example.origin for example in examples if example.origin not in stays)


def _statement(example: Example) -> Key:
    if isinstance(example, Comparison):
        return prompt_key(example), (example.chosen, example.rejected)
    assert isinstance(example, Judgement)
    return prompt_key(example), (example.completion, example.label)


def _contrary(example: Example) -> Key:
    if isinstance(example, Comparison):
        return prompt_key(example), (example.rejected, example.chosen)
    assert isinstance(example, Judgement)
    return prompt_key(example), (example.completion, not example.label)


Edge = tuple[Key, Key]


def _edge(example: Comparison) -> Edge:
    key = prompt_key(example)
    return (key, example.chosen), (key, example.rejected)


def _circular(edges: Iterable[Edge]) -> set[Edge]:
    """What is left of preferences when answers that never win or never lose are taken out, again and again."""
    left = set(edges)
    while True:
        inner = {winner for winner, _ in left} & {loser for _, loser in left}
        fewer = {edge for edge in left if edge[0] in inner and edge[1] in inner}
        if fewer == left:
            return left
        left = fewer


def _examples_of(named: Source, guess: Guess, rows: Sequence[Origin]) -> tuple[Example, ...]:
    wanted = set(rows)
    records = tuple(record for record in named.records if record.origin in wanted)
    return to_examples(Source(named.name, named.sha256, records), guess.format, guess.format.kind).examples


def _details(named: Source, guess: Guess) -> dict[Origin, str]:
    """What exactly is wrong with rows that cannot be read."""
    faults = to_examples(named, guess.format, guess.format.kind).faults.rows
    return {fault.origin: str(fault) for fault in faults}


def _entry(origin: Origin, dropped: Mapping[Origin, str], details: Mapping[Origin, str]) -> Record:
    why = details.get(origin, f"{origin}: {WHY[dropped[origin]]}")
    values = {"file": origin.file, "row": origin.row, "check": dropped[origin], "why": why, "done": "dropped"}
    return Record(dict(values), origin)


def _by_check(dropped: Mapping[Origin, str]) -> dict[str, int]:
    counts = Counter(dropped.values())
    return {check: counts[check] for check in WHY if counts[check]}


def _counts(dropped: Mapping[Origin, str]) -> str:
    return ", ".join(f"{check} {count:,}" for check, count in _by_check(dropped).items())
