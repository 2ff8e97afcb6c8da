"""How much judged answers of either kind weigh, so that the rarer kind is heard."""

from __future__ import annotations

BALANCE = (1.0, 1.5)
"""Where KTO's λ_D n_D / (λ_U n_U) should lie (arXiv:2402.01306, section 4.2 of its final version; its first said up to
4/3).
"""


def automatic_weights(desirable: int, undesirable: int) -> tuple[float, float]:
    """The weights (λ_D, λ_U) that bring the ratio into `BALANCE`; one of them is 1. Both counts are above 0.

    >>> automatic_weights(100, 400), automatic_weights(300, 100)
    ((4.0, 1.0), (1.0, 2.0))
    """
    ratio = desirable / undesirable
    return max(1.0, BALANCE[0] / ratio), max(1.0, ratio / BALANCE[1])
