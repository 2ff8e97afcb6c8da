"""The data of a comparison: read once, split by prompt, and written out for every kind of method."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.core.errors import DataError
from truing.core.trees import ExampleKind, Origin
from truing.data.conversion import FORMAT_OF, SERVES, as_kind, row_of
from truing.data.dataset import held_out_keys
from truing.data.examples import Example, Prompt, prompt_key
from truing.data.faults import counted
from truing.data.formats import detect, given, to_examples
from truing.data.records import Source, read, rename_columns
from truing.data.settings import DataSettings
from truing.training.run_directory import replace_file

LEARNERS: Mapping[ExampleKind, str] = {
    "demonstration": "sft",
    "comparison": "dpo and its relatives, reward, kto and bco, and sft by their chosen answers",
    "judgement": "kto and bco, and sft by their desirable answers",
    "prompt": "ppo, grpo and others that write completions of their own",
}
NEEDED: Mapping[ExampleKind, str] = {
    "demonstration": "demonstrations (messages, or prompt and completion), comparisons or judgements",
    "comparison": "comparisons (chosen and rejected, with a prompt)",
    "judgement": "judgements (prompt, completion and label) or comparisons (chosen and rejected)",
    "prompt": "rows with a prompt",
}


@dataclass(frozen=True, slots=True)
class Pile:
    """One file, read."""

    path: str
    sha256: str
    format: str
    kind: ExampleKind
    examples: tuple[Example, ...]
    prompts: Mapping[Origin, Prompt]
    """Of each row that has one, with the columns that rewards read."""

    def as_kind(self, example: Example, kind: ExampleKind) -> tuple[Example, ...]:
        """An example of this file as another kind."""
        if kind != "prompt":
            return as_kind(example, kind)
        return (self.prompts[example.origin],) if example.origin in self.prompts else ()


@dataclass(frozen=True, slots=True)
class Split:
    """Which prompts are kept from training."""

    held_out: frozenset[str]
    groups: Mapping[str, int]
    """Those that results are measured on, and the number of each."""

    @classmethod
    def of(cls, piles: Sequence[Pile], fraction: float, most: int) -> Split:
        """Hold out a fraction of the prompts of all files together, and measure on at most so many of them."""
        keys = [prompt_key(example) for pile in piles for example in pile.examples]
        if len(set(keys)) < 4:
            raise DataError(
                f"the files have {counted(len(set(keys)), 'prompt')} altogether; a comparison needs at least 2 to "
                "train on and 2 to measure on. Give more data"
            )
        held_out = held_out_keys(keys, fraction, least=2)
        return cls(held_out, {key: number for number, key in enumerate(sorted(held_out)[:most])})


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows of one kind taken from some files, and how many of them were of which kind there."""

    kind: ExampleKind
    examples: tuple[Example, ...]
    keys: tuple[str, ...]
    """The prompt of the row that each comes from."""
    sources: Mapping[ExampleKind, int]

    def in_words(self) -> str:
        """Such as `480 chosen answers, 200 desirable answers`."""
        return ", ".join(_phrase(self.kind, source, count) for source, count in self.sources.items())

    def write(self, file: Path) -> Path:
        """Write the rows as JSON lines in the format of their kind."""
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row_of(example), ensure_ascii=False, default=str) for example in self.examples)
        replace_file(file, "".join(line + "\n" for line in lines))
        return file


def read_pile(settings: DataSettings) -> Pile:
    """Read the one file of some settings, as what it is and, where it has them, as prompts."""
    (path,) = settings.paths
    source = rename_columns(read(path), settings.columns)
    if settings.limit is not None:
        source = Source(source.name, source.sha256, source.records[: settings.limit])
    format = (given(settings.format) if settings.format else detect(source)).format
    converted = to_examples(source, format, format.kind)
    if settings.on_bad_row == "stop":
        converted.faults.stop("Mend these rows, or take them out of the file")
    if not converted.examples:
        converted.faults.stop("No row is left to train on")
    prompts = () if format.name == "text" else to_examples(source, format, "prompt").examples
    by_origin = {prompt.origin: prompt for prompt in prompts if isinstance(prompt, Prompt)}
    return Pile(path, source.sha256, format.name, format.kind, converted.examples, by_origin)


def choose(piles: Sequence[Pile], kind: ExampleKind, wanted: Iterable[str]) -> Chosen:
    """All that the files say of some prompts (by their keys) in terms of a kind; of prompts each one once."""
    keys = frozenset(wanted)
    examples: list[Example] = []
    prompts: list[str] = []
    sources: Counter[ExampleKind] = Counter()
    seen: set[str] = set()
    for pile in piles:
        for example in pile.examples:
            key = prompt_key(example)
            found = pile.as_kind(example, kind) if key in keys and (kind != "prompt" or key not in seen) else ()
            seen.add(key)
            examples += found
            prompts += [key] * len(found)
            sources[pile.kind] += bool(found)
    return Chosen(kind, tuple(examples), tuple(prompts), {kind: count for kind, count in sources.items() if count})


def keys_of(piles: Sequence[Pile]) -> frozenset[str]:
    """Every prompt of the files."""
    return frozenset(prompt_key(example) for pile in piles for example in pile.examples)


def check_fits(method: str, kind: ExampleKind, piles: Sequence[Pile]) -> None:
    """Refuse a method that none of the files has anything for."""
    if any(pile.kind in SERVES[kind] and (kind != "prompt" or pile.prompts) for pile in piles):
        return
    held = "; ".join(f"{pile.path} holds {pile.kind}s, which train {LEARNERS[pile.kind]}" for pile in piles)
    raise DataError(f"{method}: none of the files fits it. It needs {NEEDED[kind]}; {held}")


def groups_of(chosen: Chosen, split: Split) -> list[int]:
    """The number of each row's prompt."""
    return [split.groups[key] for key in chosen.keys]


def written_settings(settings: DataSettings, kind: ExampleKind, file: Path) -> DataSettings:
    """The same settings for rows that have been read, split and written already."""
    plain: dict[str, Any] = {"path": str(file), "format": FORMAT_OF[kind], "columns": {}, "limit": None}
    return settings.model_copy(update={**plain, "holdout": 0.0, "eval_path": None})


def _phrase(kind: ExampleKind, source: ExampleKind, count: int) -> str:
    if kind == "prompt":
        return counted(count, "prompt") + ("" if source == "prompt" else f" of {source}s")
    if kind == source:
        return counted(count, kind)
    if kind == "demonstration":
        return counted(count, "chosen answer" if source == "comparison" else "desirable answer")
    return f"both answers of {counted(count, source)}"
