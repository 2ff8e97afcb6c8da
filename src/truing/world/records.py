"""Training data from the world, written as JSONL files that any recipe can name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import Field

from truing.core.errors import MachineError
from truing.core.settings import Settings
from truing.world.reviews import REVIEWS
from truing.world.reward import score
from truing.world.world import Prompt, Review, World
from truing.world.writers import STREET, panel, prefers_first, write

Row = dict[str, Any]

UNSEEN, GENERAL = 1_000_000, 400
"""Added to the seed of text that is kept from the corpus, and how many rows of it there are."""


class WorldSettings(Settings):
    """How much data is written, how good it is, and how reliable its labels are."""

    seed: int = 0
    """Each file draws from a stream of its own, so a change in one file's amount leaves the others as they are."""
    corpus: int = Field(default=20_000, ge=1)
    """Reviews by anybody, good and bad, for the base model."""
    demonstrations: int = Field(default=4000, ge=1)
    """Reviews by the panel, which are better than most."""
    pairs: int = Field(default=6000, ge=1)
    """Comparisons of two reviews by the panel."""
    judgements: int = Field(default=6000, ge=1)
    """Reviews by the panel, each with a rating of 1 to 5 and a label, good or not."""
    test_pairs: int = Field(default=2000, ge=1)
    """Comparisons by the same readers for prompts that are not trained on."""
    careful: float = Field(default=0.5, ge=0, le=1)
    """Share of careful writers in the panel; the others are plain."""
    temperature: float = Field(default=0.1, ge=0)
    """Of the Bradley-Terry reader who labels, in units of reward; 0 reads without error."""
    flip_rate: float = Field(default=0.05, ge=0, le=0.5)
    """Share of labels that are turned round after reading."""
    standard: float = Field(default=0.65, ge=0, le=1)
    """The reward of a review that a reader calls good as often as not."""
    desirable: float | None = Field(default=None, gt=0, lt=1)
    """Share of the judgements that call a review good; by default as it comes."""
    missing_desirable: float = Field(default=0.0, ge=0, lt=1)
    """Share of the good halves of pairs that is missing: a whole pair is then lost, half of a split one."""
    length_bias: float = 0.0
    """Reward that the reader sees in each word and mark, though the true reward does not."""
    flattery: float = 0.0
    """Reward that the reader sees in each clause of praise, wanted or not: a flaw that a model can exploit."""


@dataclass(frozen=True, slots=True)
class WorldFiles:
    """Where the world's data lie."""

    corpus: Path
    """Rows with `text`."""
    demonstrations: Path
    """Rows with `prompt`, `completion`."""
    pairs: Path
    """Rows with `prompt`, `chosen`, `rejected`."""
    judgements: Path
    """Rows with `prompt`, `completion`, `label`, `rating`."""
    test_pairs: Path
    """Rows with `prompt`, `chosen`, `rejected`, for held-out prompts."""
    training_prompts: Path
    """Rows with `prompt`: those that the files above use."""
    prompts: Path
    """Rows with `prompt`: those that only the test pairs use, in random order."""


def write_world(folder: Path, settings: WorldSettings, world: World = REVIEWS) -> WorldFiles:
    """Write the data files into `folder`, made where it is missing; the same settings give the same bytes."""
    names = [field.name for field in fields(WorldFiles)]
    return WorldFiles(*(write_file(folder, name, settings, world) for name in names))


def write_file(folder: Path, name: str, settings: WorldSettings, world: World = REVIEWS) -> Path:
    """Write one of the data files, by its name in `ROWS`; return its path."""
    target = folder / f"{name}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS[name](settings, world))
    except OSError as fault:
        raise MachineError(
            f"{target}: cannot write the world's data ({fault.strerror}); choose another folder"
        ) from fault
    return target


def corpus_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write prompts and anybody's answers as running text."""
    rng = _stream(settings, "corpus")
    for prompt in _draw(world.training, settings.corpus, rng):
        yield {"text": prompt.text + _completion(write(world, prompt, STREET, rng))}


def demonstration_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write prompts and answers by the panel."""
    rng = _stream(settings, "demonstrations")
    for prompt in _draw(world.training, settings.demonstrations, rng):
        yield {"prompt": prompt.text, "completion": _completion(write(world, prompt, panel(settings.careful), rng))}


def pair_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write pairs of different answers by the panel, as the noisy reader labels them."""
    return _pairs(_draw(world.training, settings.pairs, rng := _stream(settings, "pairs")), settings, world, rng)


def held_out_pair_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write such pairs for held-out prompts."""
    return _pairs(_draw(world.held_out, settings.test_pairs, rng := _stream(settings, "test")), settings, world, rng)


def judgement_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write answers by the panel, each rated and called good or not by the noisy reader.

    Where a share of good ones is asked for, answers of the class that is not due are passed over.
    """
    rng = _stream(settings, "judgements")
    for prompt in _draw(world.training, settings.judgements, rng):
        due = None if settings.desirable is None else rng.random() < settings.desirable
        while True:
            review = write(world, prompt, panel(settings.careful), rng)
            seen = _seen_reward(prompt, review, settings, world)
            label = prefers_first(seen - settings.standard, settings.temperature, settings.flip_rate, rng)
            if due is None or label == due:
                break
        rating = min(5, max(1, 1 + round(4 * (seen + settings.temperature * (2 * rng.random() - 1)))))
        yield {"prompt": prompt.text, "completion": _completion(review), "label": label, "rating": rating}


def whole_pair_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write the pairs that are left where some good answers are missing."""
    yield from (row for row, praised in _with_praise(settings, world) if praised)


def split_pair_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write the pairs as judgements, the chosen answer good and the rejected one not, where it is not missing."""
    for row, praised in _with_praise(settings, world):
        if praised:
            yield {"prompt": row["prompt"], "completion": row["chosen"], "label": True}
        yield {"prompt": row["prompt"], "completion": row["rejected"], "label": False}


def general_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write running text of the corpus's kind that is not in it."""
    yield from corpus_rows(settings.model_copy(update={"seed": settings.seed + UNSEEN, "corpus": GENERAL}), world)


def training_prompt_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write every prompt that the training files use once."""
    rng = _stream(settings, "training prompts")
    yield from ({"prompt": prompt.text} for prompt in _shuffled(world.training, rng))


def prompt_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write every held-out prompt once."""
    rng = _stream(settings, "prompts")
    yield from ({"prompt": prompt.text} for prompt in _shuffled(world.held_out, rng))


def _pairs(prompts: Iterable[Prompt], settings: WorldSettings, world: World, rng: random.Random) -> Iterator[Row]:
    crowd = panel(settings.careful)
    for prompt in prompts:
        first = second = write(world, prompt, crowd, rng)
        while second == first:
            second = write(world, prompt, crowd, rng)
        gap = _seen_reward(prompt, first, settings, world) - _seen_reward(prompt, second, settings, world)
        if not prefers_first(gap, settings.temperature, settings.flip_rate, rng):
            first, second = second, first
        yield {"prompt": prompt.text, "chosen": _completion(first), "rejected": _completion(second)}


def _with_praise(settings: WorldSettings, world: World) -> Iterator[tuple[Row, bool]]:
    """Pairs, and whether the good half is there: as where people complain and do not praise."""
    rng = _stream(settings, "praise")
    yield from ((row, rng.random() >= settings.missing_desirable) for row in pair_rows(settings, world))


def _seen_reward(prompt: Prompt, review: Review, settings: WorldSettings, world: World) -> float:
    praise = review.first.praises + review.second.praises
    biases = settings.length_bias * len(review.words) + settings.flattery * praise
    return score(prompt, review, world) + biases


def _completion(review: Review) -> str:
    """Text that continues a prompt: it brings the space between them."""
    return f" {review.text}"


def _stream(settings: WorldSettings, name: str) -> random.Random:
    return random.Random(f"{settings.seed}/{name}")


def _draw(prompts: Sequence[Prompt], count: int, rng: random.Random) -> Iterator[Prompt]:
    """Yield `count` prompts, each as often as any other give or take one, in random order."""
    while count > 0:
        round_ = _shuffled(prompts, rng)[:count]
        yield from round_
        count -= len(round_)


def _shuffled(prompts: Sequence[Prompt], rng: random.Random) -> list[Prompt]:
    left = list(prompts)
    return [left.pop(int(rng.random() * len(left))) for _ in prompts]


ROWS: Mapping[str, Callable[[WorldSettings, World], Iterator[Row]]] = {
    "corpus": corpus_rows,
    "demonstrations": demonstration_rows,
    "pairs": pair_rows,
    "judgements": judgement_rows,
    "test_pairs": held_out_pair_rows,
    "training_prompts": training_prompt_rows,
    "prompts": prompt_rows,
    "whole_pairs": whole_pair_rows,
    "split_pairs": split_pair_rows,
    "general": general_rows,
}
"""What each data file holds."""
