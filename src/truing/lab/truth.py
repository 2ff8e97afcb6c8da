"""The world's true reward as a reward function of recipes. It imports no torch: it runs in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truing.world.reward import true_reward


def true_rewards(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Score every completion by the program that is the truth of the world."""
    return [true_reward(prompt, answer) for prompt, answer in zip(prompts, completions, strict=True)]
