"""Files → trees to train on and trees held out, with a report of all that happened in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from truing.core.errors import DataError
from truing.core.trees import ExampleKind, Origin, Tree
from truing.data.encoding import Encoded, encode
from truing.data.examples import Example, Prompt, prompt_key
from truing.data.faults import Faults, counted, rows_text
from truing.data.formats import detect, given, to_examples
from truing.data.grouping import by_prompt
from truing.data.mismatch import with_mismatches
from truing.data.records import Source, read, rename_columns
from truing.data.report import DataReport, FileReport, Lengths, count_duplicates
from truing.data.settings import DataSettings
from truing.data.templates import Template, load_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]

_GO_ON = "To go on without such rows, set data.on_bad_row: drop"


@dataclass(frozen=True, slots=True)
class Rows:
    """The examples of all files of one setting, in the order of the files."""

    examples: tuple[Example, ...]
    files: tuple[FileReport, ...]
    dropped: Mapping[str, tuple[Origin, ...]]
    notes: tuple[str, ...]

    @property
    def read(self) -> int:
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a stage trains on. `train` is in the order of the files; shuffling is the step plan's work."""

    train: tuple[Tree, ...]
    held_out: tuple[Tree, ...]
    report: DataReport
    template: Template
    prompts: Mapping[Origin, Prompt]
    """Where prompts were asked for: each tree's prompt before tokenising, with the columns that rewards read."""


def load(
    settings: DataSettings,
    kind: ExampleKind,
    tokenizer: PreTrainedTokenizerBase,
    template_spec: str | None,
    end_tokens: frozenset[int],
    on_progress: Progress,
    *,
    needed_by: str = "the objective",
    mismatches: bool = False,
    groups: bool = False,
) -> Dataset:
    """Read, convert, encode and split the data of a stage.

    With `mismatches` each tree is given another prompt's answer too; with `groups` all trees of a prompt become one.

    `end_tokens` are the ids that end an answer (the tokenizer's and the generation config's); `needed_by` names the
    objective in messages. Raises DataError or TemplateError naming file and row.
    """
    template = load_template(template_spec, tokenizer)

    def finished(trees: tuple[Tree, ...]) -> tuple[Tree, ...]:
        trees = by_prompt(trees) if groups else trees
        return with_mismatches(trees, settings.max_length) if mismatches and trees else trees

    rows = read_rows(settings, kind, needed_by=needed_by)
    trees, keys, report = _encode(rows, settings, tokenizer, template, end_tokens, on_progress)
    prompts = {example.origin: example for example in rows.examples if isinstance(example, Prompt)}
    if settings.eval_path is not None:
        held_out_settings = settings.model_copy(update={"path": settings.eval_path, "eval_path": None, "limit": None})
        other = read_rows(held_out_settings, kind, needed_by=needed_by)
        _refuse_shared_prompts(rows.examples, other.examples)
        held_out, _, evaluation = _encode(other, held_out_settings, tokenizer, template, end_tokens, on_progress)
        prompts |= {example.origin: example for example in other.examples if isinstance(example, Prompt)}
        report = replace(report, evaluation=evaluation)
        return Dataset(finished(trees), finished(held_out), report, template, prompts)
    out = held_out_keys(keys, settings.holdout, least=2 if mismatches else 1)
    train = tuple(tree for tree, key in zip(trees, keys, strict=True) if key not in out)
    held_out = tuple(tree for tree, key in zip(trees, keys, strict=True) if key in out)
    return Dataset(finished(train), finished(held_out), replace(report, held_out=len(held_out)), template, prompts)


def read_rows(settings: DataSettings, kind: ExampleKind, *, needed_by: str = "the objective") -> Rows:
    """Read all files of a setting as examples of one kind. Needs no tokenizer: data can be checked without a model."""
    examples: list[Example] = []
    files: list[FileReport] = []
    faults = Faults()
    notes: list[str] = []
    left = settings.limit
    for path in settings.paths:
        source = rename_columns(read(path), settings.columns)
        if left is not None:
            source = Source(source.name, source.sha256, source.records[:left])
            left -= len(source.records)
        guess = given(settings.format) if settings.format else detect(source)
        converted = to_examples(source, guess.format, kind, needed_by=needed_by)
        examples += converted.examples
        faults.rows += converted.faults.rows
        notes += converted.notes
        files.append(FileReport(path, source.sha256, guess.format.name, guess.text, len(source.records)))
        if left == 0:
            break
    if settings.on_bad_row == "stop":
        faults.stop(_GO_ON)
    if not examples:
        faults.stop("No row is left to train on")
    return Rows(tuple(examples), tuple(files), faults.by_reason(), tuple(notes))


def check_sources(
    settings: DataSettings, kind: ExampleKind, *, needed_by: str = "the objective"
) -> tuple[Example, ...]:
    """Read a stage's files for their faults: a chain finds them before its first stage, not after it."""
    rows = read_rows(settings, kind, needed_by=needed_by)
    if settings.eval_path is not None:
        other = settings.model_copy(update={"path": settings.eval_path, "eval_path": None, "limit": None})
        read_rows(other, kind, needed_by=needed_by)
    return rows.examples


def held_out_keys(keys: Sequence[str], fraction: float, least: int = 1) -> frozenset[str]:
    """Choose the prompts to hold out by their hashes, so that a row never changes sides when others are added.

    At least `least` prompts are held out where `fraction` is above 0, and at least as many are kept.
    """
    prompts = sorted(set(keys))
    if fraction <= 0:
        return frozenset()
    if len(prompts) < 2:
        raise DataError(f"data.holdout is {fraction}, but all rows have one prompt, which cannot be on both sides")
    if len(prompts) < 2 * least:
        raise DataError(
            f"data.holdout is {fraction}, but {least} prompts are needed on either side and there are {len(prompts)}"
        )
    below = sum(int(key[:16], 16) < fraction * 2**64 for key in prompts)
    return frozenset(prompts[: min(max(below, least), len(prompts) - least)])


def _encode(
    rows: Rows,
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    end_tokens: frozenset[int],
    on_progress: Progress,
) -> tuple[tuple[Tree, ...], tuple[str, ...], DataReport]:
    encoded = encode(rows.examples, tokenizer, template, settings, end_tokens, on_progress)
    if not encoded.trees:
        _nothing_left(encoded, settings)
    completions = [len(c.tokens) for tree in encoded.trees for c in tree.completions]
    duplicates = count_duplicates(encoded.trees)
    report = DataReport(
        files=rows.files,
        template=template.name if template.source is not None else "none",
        template_sha256=template.digest,
        rows_read=rows.read,
        rows_used=len({tree.origin for tree in encoded.trees}),
        trees=len(encoded.trees),
        held_out=0,
        dropped=_merge(rows.dropped, encoded.refused.by_reason(), encoded.lost.by_reason()),
        cuts=encoded.cuts,
        prompt_tokens=Lengths.of([len(tree.prompt) for tree in encoded.trees]),
        completion_tokens=Lengths.of(completions),
        supervised_tokens=sum(tree.supervised for tree in encoded.trees),
        duplicates=duplicates,
        notes=(*rows.notes, *_notes(rows, encoded, settings, template, duplicates)),
    )
    keys = tuple(prompt_key(rows.examples[index]) for index in encoded.kept)
    return encoded.trees, keys, report


def _nothing_left(encoded: Encoded, settings: DataSettings) -> None:
    encoded.refused.stop("No row is left to train on")
    encoded.lost.stop(
        f"No row is left to train on: the shortest takes {encoded.shortest:,} tokens, "
        f"and data.max_length is {settings.max_length:,}"
    )


def _notes(rows: Rows, encoded: Encoded, settings: DataSettings, template: Template, duplicates: int) -> list[str]:
    notes = []
    raw = sum(isinstance(example.prompt, str) for example in rows.examples)
    wrapped = sum(isinstance(example.prompt, str) and bool(example.prompt) for example in rows.examples)
    if template.wraps_text and wrapped:
        notes.append(
            f"raw text was put into template '{template.name}' as user and assistant turns: {counted(wrapped, 'row')}"
        )
        raw -= wrapped
    if raw:
        notes.append(f"raw text is used as it stands, without a template: {counted(raw, 'row')}")
    cuts, limit = encoded.cuts, settings.max_length
    if cuts.tokens:
        notes.append(
            f"data.max_length {limit:,} cut {counted(cuts.tokens, 'token')}: of {counted(cuts.prompts, 'prompt')} "
            f"the start, of the completions of {counted(cuts.completions, 'row')} the end"
        )
    if encoded.shortest > limit:
        notes.append(
            f"every row is longer than data.max_length {limit:,}; the shortest takes {encoded.shortest:,} tokens"
        )
    for lost, found in encoded.lost.by_reason().items():
        notes.append(f"dropped {counted(len(found), 'row')}, {lost}: {rows_text(found)}")
    if encoded.stops_inside:
        notes.append(
            f"an end token is written inside the answer of {counted(len(encoded.stops_inside), 'row')}, which teaches "
            f"to stop there: {rows_text(encoded.stops_inside)}"
        )
    if duplicates:
        notes.append(f"exact repeats of an earlier example: {duplicates:,}")
    return notes


def _merge(*parts: Mapping[str, tuple[Origin, ...]]) -> dict[str, tuple[Origin, ...]]:
    merged: dict[str, tuple[Origin, ...]] = {}
    for part in parts:
        for reason, found in part.items():
            merged[reason] = merged.get(reason, ()) + found
    return merged


def _refuse_shared_prompts(train: Sequence[Example], held_out: Sequence[Example]) -> None:
    first: dict[str, Origin] = {}
    for example in train:
        first.setdefault(prompt_key(example), example.origin)
    shared = [(first[key], e.origin) for e in held_out if (key := prompt_key(e)) in first]
    if shared:
        named = "; ".join(f"{ours} and {theirs}" for ours, theirs in shared[:5])
        more = f"; {len(shared) - 5:,} more" if len(shared) > 5 else ""
        raise DataError(
            f"data.eval_path has prompts that are also trained on, in {counted(len(shared), 'row')} ({named}{more}); "
            "take them out of one of the files, or use data.holdout, which splits by prompt"
        )
