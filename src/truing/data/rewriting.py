"""Files in one format → a file in another, with everything named that the other cannot hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from truing.core.errors import DataError, suggest
from truing.core.trees import ExampleKind, Origin
from truing.data.conversion import FORMAT_OF
from truing.data.examples import Example, Prompt
from truing.data.faults import RowError, counted, rows_text
from truing.data.format_names import FormatName
from truing.data.formats import Converted, Format, Guess, detect, format_named, given, to_examples
from truing.data.notations import WRITTEN, losses
from truing.data.records import Record, Source, read, rename_columns
from truing.data.scores import ScoreRule
from truing.data.writers import FileKind, Target, count_formulas, stored, write_rows

MEND = "Mend these rows, or take them out with `truing data clean`"


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read: their format and the names of their columns, where they have to be told."""

    format: FormatName | None = None
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)

    def understand(self, source: Source) -> tuple[Source, Guess]:
        """The source with our names of columns, and its format."""
        named = rename_columns(source, self.columns)
        return named, given(self.format) if self.format else detect(named)


@dataclass(slots=True)
class Rows:
    """Examples written as rows of a format, and what that lost."""

    records: list[Record] = field(default_factory=list)
    lost: dict[str, list[Origin]] = field(default_factory=dict)
    """What the rows no longer say → rows of the input."""
    refused: dict[str, list[Origin]] = field(default_factory=dict)
    """Why a row could not be written at all → rows of the input."""


def convert(
    paths: Sequence[str], to: str, output: Path, reading: Reading, rule: ScoreRule, *, lossy: bool, force: bool
) -> list[str]:
    """Write the rows of some files in the format `to`; returns what is to be told, a sentence a line.

    Raises DataError where rows cannot be read, and unless `lossy` where the format cannot hold all that they say.
    """
    target = Target.of(output, paths, force=force)
    goal = _writable(to)
    examples: list[Example] = []
    told: list[str] = []
    for path in paths:
        source, guess = reading.understand(read(path))
        found = _examples(source, guess.format, goal.kind, rule, to)
        found.faults.stop(MEND)
        examples += found.examples
        told += [f"{path}: {counted(len(source.records), 'row')}, {guess.text}", *found.notes]
        told += _columns_left_out(source, guess.format, goal.kind)
    if not examples:
        raise DataError("\n".join([*told, f"nothing is left to write: the rows hold no {goal.kind}"]))
    rows = as_rows(examples, goal, target.kind)
    if (rows.lost or rows.refused) and not lossy:
        raise DataError(_refusal(rows, goal))
    if not rows.records:
        raise DataError("\n".join([*_losses_told(rows), f"no row can be written as {to}"]))
    write_rows([(target, rows.records)])
    told += _losses_told(rows)
    told.append(f"{output}: {counted(len(rows.records), 'row')}, format {to}")
    return [*told, *formula_note(target, rows.records)]


def as_rows(examples: Sequence[Example], goal: Format, kind: FileKind) -> Rows:
    """Write examples as rows of a format in a kind of file, and read every row back to see what it lost."""
    rows = Rows()
    write = WRITTEN[goal.name]
    for example in examples:
        try:
            record = stored(Record(dict(write(example)), example.origin), kind)
        except RowError as fault:
            rows.refused.setdefault(_detail(fault), []).append(example.origin)
            continue
        back = to_examples(Source("", "", (record,)), goal, goal.kind)
        if back.faults.rows:
            rows.refused.setdefault(_detail(back.faults.rows[0]), []).append(example.origin)
            continue
        for loss in losses(example, back.examples[0]):
            rows.lost.setdefault(loss, []).append(example.origin)
        rows.records.append(record)
    return rows


def formula_note(target: Target, records: Sequence[Record]) -> list[str]:
    """Warn of texts in a CSV file that a spreadsheet would run."""
    count = count_formulas(records) if target.kind == "csv" else 0
    if not count:
        return []
    return [
        f"{counted(count, 'cell')} of {target.path} begin like a formula (=, +, -, @); they are data and stay as they "
        "are: import the columns as text if you open the file in a spreadsheet"
    ]


def _writable(name: str) -> Format:
    if name not in WRITTEN:
        raise DataError(f"--to {name}: no such format can be written{suggest(name, WRITTEN)}")
    return format_named(name)


def _examples(source: Source, format: Format, kind: ExampleKind, rule: ScoreRule, to: str) -> Converted:
    found = to_examples(source, format, kind, needed_by=f"--to {to}", rule=rule)
    if kind != "prompt" or format.kind == "prompt":
        return found
    prompts = tuple(_without_answers(one, format) for one in found.examples if isinstance(one, Prompt))
    return Converted(prompts, found.faults, found.notes)


def _without_answers(example: Prompt, format: Format) -> Prompt:
    """A row's other columns are for rewards; those of its format would make the row what it was."""
    known = _columns_of(format)
    columns = {name: value for name, value in example.columns.items() if name not in known}
    return replace(example, columns=columns)


def _columns_of(format: Format) -> frozenset[str]:
    return frozenset(name for needs in format.needs for name in needs) | frozenset(format.optional)


def _columns_left_out(source: Source, format: Format, kind: ExampleKind) -> list[str]:
    known = _columns_of(format)
    others = [name for name in source.columns if name not in known]
    if kind == "prompt" or not others:
        return []
    return [f"{source.name}: no method reads the columns {', '.join(others)}; they are left out"]


def _refusal(rows: Rows, goal: Format) -> str:
    better = FORMAT_OF[goal.kind]
    hint = f", or choose --to {better} in .jsonl, which holds every {goal.kind}"
    return "\n".join(
        [
            f"--to {goal.name} cannot hold all that the rows say:",
            *_losses_told(rows),
            f"Give --lossy to write the file all the same{hint}",
        ]
    )


def _losses_told(rows: Rows) -> list[str]:
    lost = [f"lost: {what}, in {_named(at)}" for what, at in rows.lost.items()]
    return lost + [f"left out: {_named(at)}: {why}" for why, at in rows.refused.items()]


def _named(rows: Sequence[Origin]) -> str:
    """How many rows, and which; a row that became two examples is one."""
    once = list(dict.fromkeys(rows))
    return f"{counted(len(once), 'row')} ({rows_text(once)})"


def _detail(fault: RowError) -> str:
    """What is wrong, without the row that it was met in."""
    return str(fault).removeprefix(f"{fault.origin}: ")
