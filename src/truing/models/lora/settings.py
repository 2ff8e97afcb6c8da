"""What a recipe says about an adapter."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from truing.core.settings import Settings

PATTERN_PREFIX = "re:"
"""What a target begins with when it is a regular expression, to be matched against whole module paths."""


class AdapterSettings(Settings):
    """A LoRA adapter: W' = W + scale · B·A, only A and B trained (arXiv:2106.09685)."""

    use: Literal["lora"] = "lora"
    """Train a low-rank adapter over frozen weights."""
    rank: int = Field(16, ge=1)
    """Rows of A and columns of B: 8 to 32 for preferences, 1 to 32 for RL, up to 256 for large SFT sets."""
    alpha: float | None = Field(None, gt=0)
    """The adapter's product is scaled by alpha / rank; twice the rank when left out."""
    rslora: bool = False
    """Scale by alpha / √rank, so that a high rank still learns (arXiv:2312.03732)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an input of A while training."""
    targets: str | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer of the body, never the output head), names that module paths end with
    (`q_proj`), or regular expressions for whole module paths (`re:.*layers\\.[01]\\..*`)."""
    exclude: tuple[str, ...] = ()
    """Names or `re:` expressions of modules to leave alone although `targets` matches them."""
    dora: bool = False
    """Train a magnitude for each output beside the direction (arXiv:2402.09353)."""
    init: Literal["default", "pissa"] = "default"
    """`default`: A random, B zero. `pissa`: start from the principal singular directions (arXiv:2404.02948)."""
    lr_ratio: float = Field(1.0, gt=0)
    """Learning rate of B over that of A; LoRA+ suggests about 16 (arXiv:2402.12354)."""
    modules_to_save: tuple[str, ...] = ()
    """Modules to copy, train in full and save with the adapter."""
    base: Literal["nf4"] | None = None
    """`nf4` keeps the linear layers of the frozen base in four bits (QLoRA, arXiv:2305.14314); null keeps
    them in `precision.dtype`, in which everything is computed either way. Needs the extra `truing[qlora]`."""
    start: str | None = None
    """An adapter folder to start from."""
    between_stages: Literal["continue", "merge"] = "continue"
    """What a later stage does with the adapter that it starts from: go on training it, or merge it into the base."""

    @field_validator("targets", "exclude", "modules_to_save")
    @classmethod
    def _names_are_usable(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            if not name.removeprefix(PATTERN_PREFIX).strip():
                raise ValueError("a module name cannot be empty")
            if name.startswith(PATTERN_PREFIX):
                _compile(name.removeprefix(PATTERN_PREFIX))
        return value

    @field_validator("targets")
    @classmethod
    def _has_targets(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("at least one target is needed; 'all-linear' takes every linear layer of the body")
        return value

    @model_validator(mode="after")
    def _parts_agree(self) -> AdapterSettings:
        if self.dora and self.init == "pissa":
            raise ValueError("dora and init: pissa cannot be combined; choose one")
        if self.base is not None and self.init == "pissa":
            raise ValueError(
                "init: pissa over base: nf4 would start from directions that four bits have rounded already; leave "
                "out one of them"
            )
        if self.base is not None and self.between_stages == "merge":
            raise ValueError(
                "between_stages: merge cannot write into base: nf4; leave it out to go on training the adapter, or "
                "merge with `truing merge` and give the result as the stage's model"
            )
        return self

    @property
    def summary(self) -> str:
        """A few words for a line on the terminal."""
        return f"LoRA rank {self.rank}{'' if self.base is None else f' over {self.base}'}"

    @property
    def effective_alpha(self) -> float:
        """Alpha, twice the rank where it is left out."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


def scaling(rank: int, alpha: float, *, rslora: bool) -> float:
    """What the product B·A is multiplied by.

    >>> scaling(16, 32, rslora=False), scaling(16, 32, rslora=True)
    (2.0, 8.0)
    """
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def matches(pattern: str, path: str) -> bool:
    """Whether a module path ends with a name, at a dot, or is matched whole by an `re:` expression.

    >>> matches("q_proj", "layers.0.q_proj"), matches("proj", "layers.0.q_proj"), matches("re:.*[qv]_proj", "l.v_proj")
    (True, False, True)
    """
    if pattern.startswith(PATTERN_PREFIX):
        return re.fullmatch(pattern.removeprefix(PATTERN_PREFIX), path) is not None
    return path == pattern or path.endswith(f".{pattern}")


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as fault:
        raise ValueError(f"'{pattern}' is not a regular expression: {fault}") from None
