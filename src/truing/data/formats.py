"""The formats that people's rows come in, which one a file is in, and what its rows become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from truing.core.errors import DataError, suggest
from truing.core.trees import ExampleKind
from truing.data import converters, scores
from truing.data.conversion import as_kind, both_judged, chosen_answer
from truing.data.converters import HH_ASSISTANT
from truing.data.examples import Comparison, Example, Prompt, Words
from truing.data.faults import Faults, RowError, counted
from truing.data.records import Record, Source
from truing.data.rows import CHOSEN_ALONE, LABEL_NAMES, has
from truing.data.scores import Scored, ScoreRule, from_scores

T = TypeVar("T")

SAMPLE = 100
"""Rows that a guess looks at."""


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write rows down."""

    name: str
    kind: ExampleKind
    """What its rows are; of scored answers, what is drawn from them."""
    needs: tuple[tuple[str, ...], ...]
    """Sets of columns; a file has the format when it has all columns of one set."""
    read: Callable[[Record], Example | Scored]
    optional: tuple[str, ...] = ()
    read_prompt: Callable[[Record], Words] | None = None
    """Reads only the prompt where a row without an answer will do."""
    fits: Callable[[Record], bool] = lambda record: True
    """Tells formats with the same columns apart by a row's values."""
    scored: bool = False
    """Its rows are answers with scores: `Scored`, of which a rule makes examples."""

    @property
    def needs_text(self) -> str:
        """The columns in words."""
        return " or ".join(", ".join(columns) for columns in self.needs)


@dataclass(frozen=True, slots=True)
class Guess:
    """A format, and how it was come to."""

    format: Format
    text: str


@dataclass(frozen=True, slots=True)
class Converted:
    """The examples of one file, the rows that could not be used, and plain sentences on what was done."""

    examples: tuple[Example, ...]
    faults: Faults
    notes: tuple[str, ...]


def _answers_are_objects(record: Record) -> bool:
    return isinstance(record.values.get("chosen"), dict)


def _is_transcript(record: Record) -> bool:
    chosen = record.values.get("chosen")
    return isinstance(chosen, str) and HH_ASSISTANT in chosen and not has(record, "prompt")


def _is_not_half_a_pair(record: Record) -> bool:
    return not has(record, "chosen")


def _answers_are_listed(record: Record) -> bool:
    lists = [record.values[name] for name in ("answers", "completions", "responses") if has(record, name)]
    return all(isinstance(value, (list, tuple)) for value in lists)


FORMATS: tuple[Format, ...] = (
    Format(
        "llamafactory_comparison",
        "comparison",
        (("conversations", "chosen", "rejected"),),
        converters.llamafactory_comparison,
        ("system",),
        fits=_answers_are_objects,
    ),
    Format(
        "alpaca_comparison",
        "comparison",
        (("instruction", "chosen", "rejected"),),
        converters.alpaca_comparison,
        ("input", "system", "history", "margin"),
    ),
    Format("hh", "comparison", (("chosen", "rejected"),), converters.hh, ("margin",), fits=_is_transcript),
    Format(
        "comparison",
        "comparison",
        (("chosen", "rejected"),),
        converters.comparison,
        ("prompt", "margin", "score_chosen", "score_rejected"),
    ),
    Format(
        "judgement",
        "judgement",
        tuple(
            (*row, mark)
            for row in (("prompt", "completion"), ("messages",), ("conversations",), ("instruction", "output"))
            for mark in ("label", "kto_tag")
        )
        + tuple(("prompt", "response", mark) for mark in LABEL_NAMES),
        converters.judgement,
        ("input", "system", "history"),
    ),
    Format(
        "arena",
        "comparison",
        (
            ("conversation_a", "conversation_b", "winner"),
            ("prompt", "response_a", "response_b", "winner"),
            ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
        ),
        scores.arena,
        ("winner_tie",),
        scored=True,
    ),
    Format(
        "preference",
        "comparison",
        tuple(
            (asked, *answers, strength)
            for asked in ("prompt", "context", "instruction")
            for answers in zip(scores.FIRST_NAMES, scores.SECOND_NAMES, strict=True)
            for strength in scores.STRENGTH_NAMES
        ),
        scores.preference,
        scored=True,
    ),
    Format(
        "ranks",
        "comparison",
        (("prompt", "answers"), ("instruction", "answers"), ("prompt", "responses", "ranks")),
        scores.ranks,
        fits=_answers_are_listed,
        scored=True,
    ),
    Format(
        "scores",
        "comparison",
        (
            ("prompt", "completions"),
            ("instruction", "completions"),
            ("prompt", "responses", "scores"),
            *(("prompt", "response", name) for name in scores.SCORE_NAMES),
        ),
        scores.scores,
        fits=_answers_are_listed,
        scored=True,
    ),
    Format("prompt_completion", "demonstration", (("prompt", "completion"),), converters.prompt_completion),
    Format(
        "alpaca",
        "demonstration",
        (("instruction", "output"),),
        converters.alpaca,
        ("input", "system", "history"),
        read_prompt=converters.alpaca_prompt,
    ),
    Format(
        "sharegpt",
        "demonstration",
        (("conversations",),),
        converters.sharegpt,
        ("system",),
        read_prompt=converters.sharegpt_prompt,
    ),
    Format("messages", "demonstration", (("messages",),), converters.messages, read_prompt=converters.messages_prompt),
    Format("text", "demonstration", (("text",),), converters.text),
    Format(
        "prompt",
        "prompt",
        (("prompt",),),
        converters.prompt,
        read_prompt=converters.prompt_words,
        fits=_is_not_half_a_pair,
    ),
)
"""In the order in which they are tried: the more columns a format asks for, the earlier it stands."""

_PROMPT_COLUMNS = {"prompt", "instruction", "input", "messages", "conversations", "system", "history"}

_NEEDED: Mapping[ExampleKind, str] = {
    "demonstration": "demonstrations: columns messages, or prompt and completion, or instruction and output",
    "comparison": "comparisons: columns chosen and rejected, with a prompt",
    "judgement": "judgements: columns prompt, completion and label",
    "prompt": "prompts: a column prompt or messages",
}
_USE: Mapping[ExampleKind, str] = {
    "demonstration": "Demonstrations train sft",
    "comparison": "Comparisons train dpo and its relatives, reward and, by their chosen answers, sft",
    "judgement": "Judgements train kto and bco and, by their desirable answers, sft",
    "prompt": "Prompts alone need a reward (ppo, grpo)",
}


def format_named(name: str) -> Format:
    """The format of a name."""
    for format in FORMATS:
        if format.name == name:
            return format
    raise DataError(f"data.format: '{name}' is not a known format{suggest(name, [f.name for f in FORMATS])}")


def given(name: str) -> Guess:
    """The format that a recipe names."""
    return Guess(format_named(name), f"format: {name} (given in the recipe)")


def detect(source: Source) -> Guess:
    """Guess the format from the columns that the first rows fill."""
    sample = source.records[:SAMPLE]
    columns = tuple(dict.fromkeys(name for record in sample for name in record.values if has(record, name)))
    for format in FORMATS:
        used = next((needs for needs in format.needs if set(needs) <= set(columns)), None)
        if used is None:
            continue
        filled = next((record for record in sample if all(has(record, name) for name in used)), None)
        if filled is not None and format.fits(filled):
            seen = [name for name in columns if name in used or name in format.optional]
            return Guess(format, f"guessed format: {format.name} (columns {', '.join(seen)})")
    if "chosen" in columns and "rejected" not in columns:
        raise DataError(f"{source.records[0].origin}: {CHOSEN_ALONE}")
    known = "\n".join(f"  {format.name}: {format.needs_text}" for format in FORMATS)
    raise DataError(
        f"{source.name}: no known format has the columns {', '.join(columns) or '(none)'}. Rename columns with "
        f"data.columns (for example {{completion: {columns[-1] if columns else 'response'}}}), or use one of:\n{known}"
    )


def to_examples(
    source: Source,
    format: Format,
    kind: ExampleKind,
    *,
    needed_by: str = "the objective",
    rule: ScoreRule = ScoreRule(),  # noqa: B008 (frozen)
) -> Converted:
    """Turn a file's rows into examples of the kind that is needed, converting where nothing is made up.

    Rows that cannot be used are collected, not raised. Raises DataError where the format cannot give the kind at all.
    """
    if format.scored and kind != "prompt":
        scored, faults = _read_all(source, lambda record: (_read_scores(record, format),))
        drawn, note = from_scores(scored, kind, rule, source.name)
        return Converted(drawn, faults, (note,))
    convert, notes = _conversion(source, format, kind, needed_by)
    examples, faults = _read_all(source, convert)
    if format.kind == "judgement" and kind == "demonstration":
        left = len(source.records) - len(faults.rows) - len(examples)
        notes = (f"{source.name}: each desirable answer is used as a demonstration; {counted(left, 'row')} left out",)
    return Converted(tuple(examples), faults, notes)


def _read_all(source: Source, read: Callable[[Record], Iterable[T]]) -> tuple[list[T], Faults]:
    found: list[T] = []
    faults = Faults()
    for record in source.records:
        try:
            found += read(record)
        except RowError as fault:
            faults.add(fault)
    return found, faults


def _conversion(
    source: Source, format: Format, kind: ExampleKind, needed_by: str
) -> tuple[Callable[[Record], Iterable[Example]], tuple[str, ...]]:
    if kind == "prompt" and format.name != "text":
        note = f"{source.name}: only the prompts of its {format.kind}s are used"
        return lambda record: (_as_prompt(record, format),), () if format.kind == "prompt" else (note,)
    if kind == format.kind:
        return lambda record: (_read_example(record, format),), ()
    if format.kind == "comparison" and kind == "demonstration":
        note = f"{source.name}: each comparison is used as a demonstration, its chosen answer"
        return lambda record: (chosen_answer(_compared(record, format)),), (note,)
    if format.kind == "comparison" and kind == "judgement":
        note = f"{source.name}: each comparison is used as two judgements, chosen as desirable, rejected as undesirable"
        return lambda record: both_judged(_compared(record, format)), (note,)
    if format.kind == "judgement" and kind == "demonstration":
        return lambda record: as_kind(_read_example(record, format), kind), ()  # the note counts what was left out
    raise DataError(
        f"{source.name}: rows are {format.kind}s ({format.name}: {format.needs_text}) but {needed_by} needs "
        f"{_NEEDED[kind]}. {_USE[format.kind]}. If the file has such columns under other names, give data.columns "
        "or data.format"
    )


def _read_example(record: Record, format: Format) -> Example:
    example = format.read(record)
    assert not isinstance(example, Scored)
    return example


def _read_scores(record: Record, format: Format) -> Scored:
    scored = format.read(record)
    assert isinstance(scored, Scored)
    return scored


def _compared(record: Record, format: Format) -> Comparison:
    example = format.read(record)
    assert isinstance(example, Comparison)
    return example


def _as_prompt(record: Record, format: Format) -> Prompt:
    words = format.read_prompt(record) if format.read_prompt else _prompt_of(format.read(record))
    if not words:
        raise RowError(record.origin, "no prompt", "the row has no prompt to answer")
    columns = {name: value for name, value in record.values.items() if name not in _PROMPT_COLUMNS}
    return Prompt(words, columns, record.origin)


def _prompt_of(example: Example | Scored) -> Words:
    return example.prompt
