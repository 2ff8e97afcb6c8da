"""What our own studies measured that speaks to a rule."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml
from pydantic import RootModel

from truing.core.settings import Settings


class Evidence(Settings):
    """A paired difference of two arms of a study of the tour's world."""

    study: str
    sentence: str
    difference: float
    """Of expected true reward, 0 to 1."""
    half_width_95: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.sentence} ({self.study}, true reward 0 to 1, {self.seeds} seeds)"


class _Book(RootModel[dict[str, Evidence]]):
    """All of them by name."""


@cache
def evidence() -> dict[str, Evidence]:
    """Read what comes with the package; docs/advice.py writes it from the studies' results."""
    text = resources.files("truing.advisor").joinpath("evidence.yaml").read_text(encoding="utf-8")
    return _Book.model_validate(yaml.safe_load(text)).root
