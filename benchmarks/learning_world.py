"""The world in which learning is measured: the tour's, with more settings, so that more prompts can be held out.

It is loaded by the processes that run the reward functions of the recipes, and so imports no torch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truing.world.grammar import split_words
from truing.world.records import WorldFiles, WorldSettings, pair_rows, write_world
from truing.world.reviews import REVIEWS
from truing.world.reward import score, true_reward
from truing.world.writers import panel, pick, prefers_first, write

# fmt: off
MORE_SETTINGS = (
    "northern", "southern", "eastern", "western", "upper", "lower", "central", "forest", "lakeside", "island",
    "valley", "meadow", "bridge", "tower", "abbey", "chapel", "canal", "airport", "campus", "suburban", "royal",
    "modern", "rustic", "family", "public", "local", "famous", "hidden", "sunken", "mountain", "desert", "coastal",
    "garrison", "orchard", "windmill", "quayside",
)
# fmt: on
WORLD = replace(REVIEWS, settings=(*REVIEWS.settings, *MORE_SETTINGS))

TUNING_PROMPTS = 72  # of the held-out ones, the first, on which settings were chosen; the others are judged
JUDGEMENTS = 6000
GOOD_ENOUGH = 0.65  # the reward at which a judge is in two minds
TEST_PAIRS = 8000
WORDY_PAIRS, WORDY_BIAS = 300, 0.1  # comparisons for the flawed reward: how many, and what a word seems worth


@dataclass(frozen=True)
class Files:
    """Everything that is trained on, and what it is judged on."""

    world: WorldFiles
    judgements: Path  # rows with prompt, completion, label
    training_prompts: Path  # rows with prompt
    wordy_pairs: Path  # few comparisons by readers whom length impresses
    test_pairs: Path  # comparisons for prompts that are not trained on, by the readers of the training pairs
    judged: tuple[str, ...]
    tuning: tuple[str, ...]


def true_rewards(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """The true reward as a recipe's `rollout.rewards` calls it."""
    return [true_reward(prompt, answer, WORLD) for prompt, answer in zip(prompts, completions, strict=True)]


def write_files(folder: Path) -> Files:
    """Write all data; the same bytes every time."""
    settings = WorldSettings()
    world = write_world(folder, settings, WORLD)
    held_out = [json.loads(line)["prompt"] for line in world.prompts.read_text(encoding="utf-8").splitlines()]
    wordy = settings.model_copy(update={"seed": 1, "pairs": WORDY_PAIRS, "length_bias": WORDY_BIAS})
    test = settings.model_copy(update={"seed": 3, "pairs": TEST_PAIRS})  # settings were chosen on seed 2
    turned = replace(WORLD)  # pair_rows draws from the training prompts: here these are the held-out ones
    turned.__dict__["training"] = WORLD.held_out
    return Files(
        world=world,
        judgements=_write(folder / "judgements.jsonl", judgement_rows(JUDGEMENTS)),
        training_prompts=_write(folder / "training_prompts.jsonl", ({"prompt": p.text} for p in WORLD.training)),
        wordy_pairs=_write(folder / "wordy_pairs.jsonl", pair_rows(wordy, WORLD)),
        test_pairs=_write(folder / "test_pairs.jsonl", pair_rows(test, turned)),
        tuning=tuple(held_out[:TUNING_PROMPTS]),
        judged=tuple(held_out[TUNING_PROMPTS:]),
    )


def judgement_rows(count: int) -> Iterator[dict[str, Any]]:
    """Answers by the writers of the demonstrations, each called good or not by the noisy readers of the pairs."""
    settings, rng = WorldSettings(), random.Random("judgements")
    for _ in range(count):
        prompt = pick(WORLD.training, rng)
        review = write(WORLD, prompt, panel(), rng)
        gap = score(prompt, review, WORLD) - GOOD_ENOUGH
        label = prefers_first(gap, settings.temperature, settings.flip_rate, rng)
        yield {"prompt": prompt.text, "completion": f" {review.text}", "label": label}


def word_count(answer: str) -> int:
    """Words and marks of an answer, which is what the tokenizer counts."""
    return len(split_words(answer))


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path
