"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from truing.training.settings import OptimSettings


def rate_factor(step: int, total: int, settings: OptimSettings) -> float:
    """Return the share of the peak rate used by step `step` (0-based) of `total`.

    The warm-up rises over ceil(warmup·total) steps and never starts at zero: a first step at rate 0 would be wasted.
    """
    warmup = math.ceil(settings.warmup * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    fall = 1 - progress if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return settings.min_lr_ratio + (1 - settings.min_lr_ratio) * fall
