"""Training data from the world, written as JSONL files that any recipe can name."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from truing.core.errors import MachineError
from truing.core.settings import Settings
from truing.world.reviews import REVIEWS
from truing.world.reward import score
from truing.world.world import Prompt, Review, World
from truing.world.writers import PANEL, STREET, prefers_first, write

Row = dict[str, str]


class WorldSettings(Settings):
    """How much data is written, and how reliable its labels are."""

    seed: int = 0
    """Each file draws from a stream of its own, so a change in one file's amount leaves the others as they are."""
    corpus: int = Field(default=20_000, ge=1)
    """Reviews by anybody, good and bad, for the base model."""
    demonstrations: int = Field(default=4000, ge=1)
    """Reviews that are better than most."""
    pairs: int = Field(default=6000, ge=1)
    """Comparisons of two reviews that the demonstrations' writers could have written."""
    temperature: float = Field(default=0.1, ge=0)
    """Of the Bradley-Terry reader who labels pairs, in units of reward; 0 reads without error."""
    flip_rate: float = Field(default=0.05, ge=0, le=0.5)
    """Share of pairs whose label is turned round after reading."""
    length_bias: float = 0.0
    """Reward that the reader sees in each word and mark, though the true reward does not."""


@dataclass(frozen=True, slots=True)
class WorldFiles:
    """Where the world's data lie."""

    corpus: Path
    """Rows with `text`."""
    demonstrations: Path
    """Rows with `prompt`, `completion`."""
    pairs: Path
    """Rows with `prompt`, `chosen`, `rejected`."""
    prompts: Path
    """Rows with `prompt`: contexts that no other file uses, in random order."""


def write_world(folder: Path, settings: WorldSettings, world: World = REVIEWS) -> WorldFiles:
    """Write the four data files into `folder`, made where it is missing; the same settings give the same bytes."""
    files = WorldFiles(
        corpus=folder / "corpus.jsonl",
        demonstrations=folder / "demonstrations.jsonl",
        pairs=folder / "pairs.jsonl",
        prompts=folder / "prompts.jsonl",
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_rows(files.corpus, corpus_rows(settings, world))
        _write_rows(files.demonstrations, demonstration_rows(settings, world))
        _write_rows(files.pairs, pair_rows(settings, world))
        _write_rows(files.prompts, prompt_rows(settings, world))
    except OSError as fault:
        raise MachineError(
            f"{folder}: cannot write the world's data ({fault.strerror}); choose another folder"
        ) from fault
    return files


def corpus_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write prompts and anybody's answers as running text."""
    rng = _stream(settings, "corpus")
    for prompt in _draw(world.training, settings.corpus, rng):
        yield {"text": prompt.text + _completion(write(world, prompt, STREET, rng))}


def demonstration_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write prompts and answers by the panel."""
    rng = _stream(settings, "demonstrations")
    for prompt in _draw(world.training, settings.demonstrations, rng):
        yield {"prompt": prompt.text, "completion": _completion(write(world, prompt, PANEL, rng))}


def pair_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write pairs of different answers by the panel, as the noisy reader labels them."""
    rng = _stream(settings, "pairs")
    for prompt in _draw(world.training, settings.pairs, rng):
        first = second = write(world, prompt, PANEL, rng)
        while second == first:
            second = write(world, prompt, PANEL, rng)
        gap = _seen_reward(prompt, first, settings, world) - _seen_reward(prompt, second, settings, world)
        if not prefers_first(gap, settings.temperature, settings.flip_rate, rng):
            first, second = second, first
        yield {"prompt": prompt.text, "chosen": _completion(first), "rejected": _completion(second)}


def prompt_rows(settings: WorldSettings, world: World = REVIEWS) -> Iterator[Row]:
    """Write every held-out prompt once."""
    rng = _stream(settings, "prompts")
    yield from ({"prompt": prompt.text} for prompt in _shuffled(world.held_out, rng))


def _seen_reward(prompt: Prompt, review: Review, settings: WorldSettings, world: World) -> float:
    return score(prompt, review, world) + settings.length_bias * len(review.words)


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


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
