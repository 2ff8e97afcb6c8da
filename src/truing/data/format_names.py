"""The names of the formats of data: apart from what reads them, so that a command can list them at once."""

from __future__ import annotations

from typing import Literal

FormatName = Literal[
    "alpaca",
    "sharegpt",
    "messages",
    "text",
    "prompt_completion",
    "comparison",
    "alpaca_comparison",
    "hh",
    "llamafactory_comparison",
    "judgement",
    "arena",
    "preference",
    "ranks",
    "scores",
    "prompt",
]
