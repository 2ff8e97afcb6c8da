"""Identity Preference Optimization."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import FROM_ZERO, LogRatioObjective, Pairs, PairwiseObjective


class IPO(LogRatioObjective):
    """L = (h − 1/(2β))², h the difference of the *per-token* log-ratios of chosen and rejected.

    Eq. 17 of the paper sums over tokens; its authors confirm that the log-ratios are averaged over the tokens of each
    completion, without which β would depend on the lengths.
    """

    name: ClassVar[str] = "ipo"
    paper: ClassVar[str] = "arXiv:2310.12036, eq. 17, log-ratios averaged over tokens"
    purpose: ClassVar[str] = "Comparisons that are nearly deterministic or noisy, where DPO would over-fit the margin."
    avoid: ClassVar[str] = "Avoid when margins should keep growing with the evidence; tune β anew, it is not DPO's."
    watch: ClassVar[str] = (
        FROM_ZERO
        + "\n`rewards/margins` is β times a difference per token, and its target is 0.5 whatever β is. At β 0.1 that "
        "is 5 nats a token: expect hundredths, and a `loss` that stays not far below 25."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`logps/chosen` falls steeply and samples fall apart: the target is too far. `beta` 0.5 asks for 1 nat a "
        "token."
    )

    beta: float = Field(default=0.1, gt=0)
    """τ of the paper: the per-token margin aimed at is 1/(2β). 0.1 is TRL's default."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        h = pairs.chosen_logratio / pairs.chosen_length - pairs.rejected_logratio / pairs.rejected_length
        return (h - 1 / (2 * self.beta)).square()

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return (
            self.beta * pairs.chosen_logratio / pairs.chosen_length,
            self.beta * pairs.rejected_logratio / pairs.rejected_length,
        )

    def start(self) -> float:
        return (1 / (2 * self.beta)) ** 2
