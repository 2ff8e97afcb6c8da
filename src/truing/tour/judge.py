"""Scores a model of the tour by the world's true reward."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from truing.build.load_result import Opened, open_result
from truing.models.sampling import generate
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
    by_prompt = defaultdict(list)
    opened = open_result(folder)
    for prompt, text in _sample(opened, prompts * SAMPLES, temperature=TEMPERATURE):
        by_prompt[prompt].append(true_reward(prompt, text))
    means = [sum(rewards) / len(rewards) for rewards in by_prompt.values()]
    mean = sum(means) / len(means)
    variance = sum((m - mean) ** 2 for m in means) / (len(means) - 1)
    return Verdict(mean, 1.96 * math.sqrt(variance / len(means)))


def answers(folder: Path, prompts: list[str]) -> list[tuple[str, float]]:
    """Return the likeliest answer to each prompt, with its true reward."""
    answered = _sample(open_result(folder), prompts, temperature=0.0)
    return [(text, true_reward(prompt, text)) for prompt, text in answered]


def _sample(opened: Opened, prompts: list[str], temperature: float) -> list[tuple[str, str]]:
    tokenizer = opened.loaded.tokenizer
    tokens = generate(
        opened.model,
        tokenizer,
        [tokenizer(prompt)["input_ids"] for prompt in prompts],
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=temperature,
        seed=SEED,
        end_tokens=opened.loaded.end_tokens,
    )
    texts = [tokenizer.decode(t, skip_special_tokens=True).strip() for t in tokens]
    return list(zip(prompts, texts, strict=True))
