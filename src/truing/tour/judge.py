"""Scores a model of the tour by the world's true reward."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from truing.build.load_result import Opened, open_result
from truing.models.decoding import Choice
from truing.models.sampling import sample
from truing.world.base_model import MAX_NEW_TOKENS, TEMPERATURE
from truing.world.reward import true_reward

PROMPTS, SAMPLES, SEED = 64, 4, 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Mean true reward of sampled answers, and half the width of its 95 % interval."""

    mean: float
    half_width: float


def judge(folder: Path, prompts_file: Path) -> Verdict:
    """Sample answers to held-out prompts and score them; answers to one prompt count as one observation."""
    prompts = [json.loads(line)["prompt"] for line in prompts_file.read_text(encoding="utf-8").splitlines()[:PROMPTS]]
    by_prompt: dict[str, list[float]] = defaultdict(list)
    opened = open_result(folder)
    for prompt, texts in zip(prompts, _sample(opened, prompts, SAMPLES, TEMPERATURE), strict=True):
        by_prompt[prompt] += [true_reward(prompt, text) for text in texts]
    means = [sum(rewards) / len(rewards) for rewards in by_prompt.values()]
    mean = sum(means) / len(means)
    variance = sum((m - mean) ** 2 for m in means) / (len(means) - 1)
    return Verdict(mean, 1.96 * math.sqrt(variance / len(means)))


def answers(folder: Path, prompts: list[str]) -> list[tuple[str, float]]:
    """Return the likeliest answer to each prompt, with its true reward."""
    answered = _sample(open_result(folder), prompts, 1, 0.0)
    return [(texts[0], true_reward(prompt, texts[0])) for prompt, texts in zip(prompts, answered, strict=True)]


def _sample(opened: Opened, prompts: list[str], count: int, temperature: float) -> list[list[str]]:
    tokenizer = opened.loaded.tokenizer
    written = sample(
        opened.model,
        [tokenizer(prompt)["input_ids"] for prompt in prompts],
        count=count,
        max_new_tokens=MAX_NEW_TOKENS,
        choice=Choice(temperature),
        seed=SEED,
        end_tokens=opened.loaded.end_tokens,
    )
    return [[tokenizer.decode(row.tokens, skip_special_tokens=True).strip() for row in rows] for rows in written]
