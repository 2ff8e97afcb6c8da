"""Rewards as a user writes them: a number a completion, higher is better."""

import re

HAPPY = {"fun", "glad", "good", "happy", "joy", "laughed", "loved", "nice", "smiled"}


def happy(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
    """How many happy words a completion has, repeated ones counted once."""
    return [float(len(HAPPY & set(re.findall(r"[a-z]+", text.lower())))) for text in completions]
