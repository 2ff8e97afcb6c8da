"""One score from several reward models."""

from __future__ import annotations

from torch import Tensor

from truing.core.errors import InputError


def ensemble_score(scores: Tensor, deviations: float) -> Tensor:
    """Mean of the members' scores less so many of their standard deviations: float64 [M, C] → float64 [C].

    An answer that the members disagree about is an answer that a policy may exploit (arXiv:2310.02743, which subtracts
    the variance; the deviation has the unit of the scores, as in arXiv:2312.09244). The deviation is that of the
    population, divided by M: the members are all there are, not a sample of more. So a single member has none and gives
    its plain score, and of two members one deviation below the mean is exactly the lower score.
    """
    if scores.ndim != 2 or scores.shape[0] == 0:
        raise InputError(
            f"an ensemble's scores have shape {tuple(scores.shape)}; expected [members, completions] with at least "
            "one member"
        )
    exact = scores.double()
    mean = exact.mean(dim=0)
    return mean - deviations * (exact - mean).square().mean(dim=0).sqrt()
