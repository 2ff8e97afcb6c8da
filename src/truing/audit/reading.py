"""Files → examples, with what is wrong with files and rows as findings: all of it, not only what is met first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from truing.audit.finding import EXAMPLES, Finding, cleaning, percent, shorten
from truing.core.errors import DataError
from truing.core.trees import ExampleKind, Origin
from truing.data.examples import Example
from truing.data.faults import RowError, counted
from truing.data.format_names import FormatName
from truing.data.formats import FORMATS, Guess, detect, given, to_examples
from truing.data.records import Record, Source, read, rename_columns
from truing.data.rows import has

IDENTICAL = "identical answers"
ROLES = ("no user turn", "no answer at the end", "unknown role", "tool turns", "no single answer", "contexts differ")
"""Reasons of a RowError that have a check of their own; all others are bad rows."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How files are to be read."""

    kind: ExampleKind | None
    """What their rows are to become; None: what they are."""
    purpose: str
    columns: Mapping[str, str]
    format: FormatName | None
    limit: int | None


@dataclass(slots=True)
class Reading:
    """What could be read, and what could not."""

    asked: Asked
    examples: list[Example] = field(default_factory=list)
    kinds: Counter[ExampleKind] = field(default_factory=Counter)
    """Usable rows by what they are themselves."""
    faults: list[RowError] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    """Files whose format is unknown, or cannot give what is asked for."""
    mixed: dict[Origin, ExampleKind] = field(default_factory=dict)
    """Rows that are of another kind than their file."""
    rows: int = 0

    def findings(self) -> list[Finding]:
        """The checks `readable` to `identical_pair`."""
        found = [self._readable()]
        if self.guesses or self.unusable:
            found.append(self._format())
        if self.guesses:
            found += [self._rows(), self._roles(), self._mixed()]
            found += self._identical()
        return found

    def _readable(self) -> Finding:
        if self.unreadable:
            return Finding("readable", "stop", "; ".join(self.unreadable), "mend the file or name another")
        return Finding("readable", "ok", f"{counted(self.rows, 'row')} read", figures={"rows": self.rows})

    def _format(self) -> Finding:
        if self.unusable:
            return Finding(
                "format",
                "stop",
                "; ".join(self.unusable),
                "name the format with --format, or columns with --columns OURS=THEIRS",
            )
        return Finding("format", "ok", "; ".join(self.guesses))

    def _rows(self) -> Finding:
        other = (IDENTICAL, *ROLES)
        bad = [fault for fault in self.faults if fault.reason not in other and fault.origin not in self.mixed]
        if not bad:
            return Finding("rows", "ok", "every row has what it needs")
        return self._stop("rows", bad, "that cannot be used")

    def _roles(self) -> Finding:
        bad = [fault for fault in self.faults if fault.reason in ROLES]
        if not bad:
            return Finding("roles", "ok", "every conversation runs from a user to an answer")
        return self._stop("roles", bad, "with turns that do not fit")

    def _identical(self) -> list[Finding]:
        bad = [fault for fault in self.faults if fault.reason == IDENTICAL]
        if bad:
            return [self._stop("identical_pair", bad, "with the same answer chosen and rejected")]
        if not self.kinds["comparison"]:
            return []
        return [Finding("identical_pair", "ok", "no pair has the same answer twice")]

    def _stop(self, check: str, bad: Sequence[RowError], what: str) -> Finding:
        reasons = Counter(fault.reason for fault in bad)
        named = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        share = len(bad) / self.rows
        rows = tuple(fault.origin for fault in bad)
        return Finding(
            check,
            "stop",
            f"{counted(len(bad), 'row')} ({percent(share)}) {what}: {named}",
            f"{cleaning(rows)}, or set data.on_bad_row: drop",
            rows,
            tuple(shorten(str(fault), 200) for fault in bad[:EXAMPLES]),
            {"count": len(bad), "share": share},
        )

    def _mixed(self) -> Finding:
        if self.mixed:
            rows = tuple(self.mixed)
            kinds = Counter(self.mixed.values())
            named = ", ".join(counted(count, kind) for kind, count in kinds.most_common())
            return Finding(
                "mixed",
                "stop",
                f"{counted(len(rows), 'row')} of another kind than their file, of {self.rows:,}: {named}",
                "put the rows of each kind into a file of their own",
                rows,
                tuple(f"{row}: a {kind}" for row, kind in list(self.mixed.items())[:EXAMPLES]),
                {"count": len(rows), "share": len(rows) / self.rows},
            )
        several = [kind for kind, count in self.kinds.items() if count]
        if len(several) > 1 and self.asked.kind is None:
            named = ", ".join(counted(self.kinds[kind], kind) for kind in several)
            return Finding("mixed", "warn", f"the files hold {named}", "name the method that they train with --for")
        named = " and ".join(f"{kind}s" for kind in several)
        return Finding("mixed", "ok", f"all rows are {named}" if several else "no row could be used")


def read_all(paths: Sequence[str], asked: Asked) -> Reading:
    """Read every file; a limit counts the rows of all together."""
    reading = Reading(asked)
    for path in paths:
        left = None if asked.limit is None else asked.limit - reading.rows
        if left == 0:
            break
        try:
            source = read(path)
        except DataError as fault:
            reading.unreadable.append(str(fault))
            continue
        if left is not None:
            source = Source(source.name, source.sha256, source.records[:left])
        _add(reading, source, asked)
    return reading


def _add(reading: Reading, source: Source, asked: Asked) -> None:
    reading.rows += len(source.records)
    try:
        renamed = rename_columns(source, asked.columns)
        guess = given(asked.format) if asked.format else detect(renamed)
        wanted = asked.kind or guess.format.kind
        converted = to_examples(renamed, guess.format, wanted, needed_by=asked.purpose or "this check")
    except DataError as fault:
        reading.unusable.append(str(fault))
        return
    reading.guesses.append(f"{source.name}: {guess.text}")
    reading.examples += converted.examples
    reading.faults += converted.faults.rows
    reading.kinds[guess.format.kind] += len({example.origin for example in converted.examples})
    reading.mixed |= _strangers(renamed.records, guess, {fault.origin for fault in converted.faults.rows})


def _strangers(records: Sequence[Record], guess: Guess, refused: set[Origin]) -> dict[Origin, ExampleKind]:
    """Rows that the file's format refuses, but that fill the columns of a format of another kind.

    One of these has to be foreign to the file's format, or the row has to be without one of the file's own columns
    altogether, as a demonstration among judgements is: a row that has too little only lacks a value.
    """
    own = {name for needs in guess.format.needs for name in needs}
    others = [
        (set(needs), format.kind)
        for format in FORMATS
        if format.kind not in (guess.format.kind, "prompt")
        for needs in format.needs
    ]
    found: dict[Origin, ExampleKind] = {}
    for record in records:
        if record.origin in refused:
            filled = {name for name in record.values if has(record, name)}
            complete = any(set(needs) <= record.values.keys() for needs in guess.format.needs)
            kind = next((kind for needs, kind in others if needs <= filled and not (complete and needs <= own)), None)
            if kind is not None:
                found[record.origin] = kind
    return found
