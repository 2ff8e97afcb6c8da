from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from tests.world.small import SMALL
from truing.core.errors import MachineError
from truing.world.grammar import split_words
from truing.world.records import (
    WorldSettings,
    corpus_rows,
    demonstration_rows,
    pair_rows,
    prompt_rows,
    write_world,
)
from truing.world.reviews import REVIEWS
from truing.world.reward import true_reward
from truing.world.writers import prefers_first

FEW = WorldSettings(corpus=600, demonstrations=400, pairs=400)


def rewards_of(row: dict[str, str]) -> tuple[float, float]:
    return true_reward(row["prompt"], row["chosen"]), true_reward(row["prompt"], row["rejected"])


def split_text(text: str) -> tuple[str, str]:
    prompt, answer = text.split(":", 1)
    return f"{prompt}:", answer


def test_the_same_settings_give_the_same_bytes_and_another_seed_gives_others(tmp_path: Path) -> None:
    first, second = write_world(tmp_path / "a", FEW), write_world(tmp_path / "b", FEW)
    other = write_world(tmp_path / "c", FEW.model_copy(update={"seed": 1}))
    for name in ("corpus", "demonstrations", "pairs", "prompts"):
        content = getattr(first, name).read_bytes()
        assert content == getattr(second, name).read_bytes()
        assert content != getattr(other, name).read_bytes()


def test_files_hold_the_columns_that_recipes_know_and_as_many_rows_as_asked(tmp_path: Path) -> None:
    files = write_world(tmp_path, FEW)
    expected = {
        files.corpus: (600, {"text"}),
        files.demonstrations: (400, {"prompt", "completion"}),
        files.pairs: (400, {"prompt", "chosen", "rejected"}),
        files.prompts: (len(REVIEWS.held_out), {"prompt"}),
    }
    for path, (count, columns) in expected.items():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        assert all(set(row) == columns for row in rows)


def test_the_amount_of_one_file_leaves_the_others_as_they_are() -> None:
    more = FEW.model_copy(update={"corpus": 1000})
    assert list(pair_rows(FEW)) == list(pair_rows(more))
    assert list(corpus_rows(more))[: len(REVIEWS.training)] == list(corpus_rows(FEW))[: len(REVIEWS.training)]


def test_every_written_answer_is_in_the_enumerated_set() -> None:
    answers = {prompt.text: set(SMALL.answers(prompt.text)) for prompt in SMALL.training}
    for row in corpus_rows(FEW, SMALL):
        prompt, answer = split_text(row["text"])
        assert answer.removeprefix(" ") in answers[prompt]
    for row in pair_rows(FEW, SMALL):
        assert {row["chosen"].removeprefix(" "), row["rejected"].removeprefix(" ")} <= answers[row["prompt"]]


def test_every_answer_of_the_reviews_is_grammatical() -> None:
    corpus = [split_text(row["text"]) for row in corpus_rows(FEW)]
    demonstrations = [(row["prompt"], row["completion"]) for row in demonstration_rows(FEW)]
    pairs = [(row["prompt"], row[side]) for row in pair_rows(FEW) for side in ("chosen", "rejected")]
    for prompt, answer in corpus + demonstrations + pairs:
        assert answer.startswith(" ")
        assert REVIEWS.is_grammatical(prompt, answer)


def test_held_out_prompts_are_in_no_training_file() -> None:
    held_out = {row["prompt"] for row in prompt_rows(FEW)}
    trained = {split_text(row["text"])[0] for row in corpus_rows(FEW)}
    trained |= {row["prompt"] for rows in (demonstration_rows(FEW), pair_rows(FEW)) for row in rows}
    assert held_out == {prompt.text for prompt in REVIEWS.held_out}
    assert not held_out & trained
    assert trained == {prompt.text for prompt in REVIEWS.training}


def test_demonstrations_are_better_than_the_corpus_and_leave_room_above() -> None:
    settings = WorldSettings(corpus=3000, demonstrations=3000)
    corpus = [true_reward(*split_text(row["text"])) for row in corpus_rows(settings)]
    shown = [true_reward(row["prompt"], row["completion"]) for row in demonstration_rows(settings)]
    # Means of 3000 draws with a deviation near 0.3 are within 0.02 of their expectation in all but 1 of 1000 worlds.
    assert 0.2 < sum(corpus) / 3000 < 0.4
    assert 0.5 < sum(shown) / 3000 < 0.7


def test_without_noise_the_better_answer_is_always_chosen() -> None:
    exact = WorldSettings(pairs=1000, temperature=0, flip_rate=0)
    pairs = [rewards_of(row) for row in pair_rows(exact)]
    assert all(chosen >= rejected for chosen, rejected in pairs)
    assert sum(chosen > rejected for chosen, rejected in pairs) > 800


def test_labels_are_flipped_at_the_rate_asked_for() -> None:
    rate = 0.2
    noisy = WorldSettings(pairs=4000, temperature=0, flip_rate=rate)
    unequal = [(c, r) for c, r in map(rewards_of, pair_rows(noisy)) if abs(c - r) > 1e-9]
    flipped = sum(chosen < rejected for chosen, rejected in unequal)
    spread = math.sqrt(len(unequal) * rate * (1 - rate))
    assert abs(flipped - rate * len(unequal)) < 3.3 * spread


@pytest.mark.parametrize(("gap", "temperature"), [(0.1, 0.1), (-0.2, 0.1), (0.3, 0.5), (0.0, 0.0)])
def test_the_reader_prefers_as_bradley_and_terry_say(gap: float, temperature: float) -> None:
    flip_rate, draws = 0.05, 20_000
    fair = 1 / (1 + math.exp(-gap / temperature)) if temperature else 0.5
    expected = fair * (1 - flip_rate) + (1 - fair) * flip_rate
    rng = random.Random(0)
    taken = sum(prefers_first(gap, temperature, flip_rate, rng) for _ in range(draws))
    assert abs(taken - expected * draws) < 3.3 * math.sqrt(draws * expected * (1 - expected))


def test_a_tiny_temperature_does_not_overflow() -> None:
    assert prefers_first(1.0, 1e-300, 0.0, random.Random(0))
    assert not prefers_first(-1.0, 1e-300, 0.0, random.Random(0))


def test_a_reader_with_a_length_bias_takes_longer_answers() -> None:
    def share_of_longer(bias: float) -> float:
        rows = list(pair_rows(WorldSettings(pairs=1000, temperature=0, flip_rate=0, length_bias=bias)))
        lengths = [(len(split_words(row["chosen"])), len(split_words(row["rejected"]))) for row in rows]
        unequal = [(c, r) for c, r in lengths if c != r]
        return sum(c > r for c, r in unequal) / len(unequal)

    # At 10 a word, no difference in true reward (at most 1) can make up for one word.
    assert share_of_longer(10.0) > 0.95
    assert share_of_longer(-10.0) < 0.05
    assert share_of_longer(0.0) < share_of_longer(0.05) < share_of_longer(10.0)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match=r"corpus\.jsonl: cannot write the world's data"):
        write_world(tmp_path / "file", FEW)
