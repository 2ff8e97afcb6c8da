"""Weighted Preference Optimization."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from truing.core.errors import InputError
from truing.objectives.dpo import DPO, UNLEARNED
from truing.objectives.pairwise import LogRatioObjective, Pairs, PairwiseObjective


class WPO(DPO):
    """L = −w(y⁺) w(y⁻) log σ(z), z as in DPO, w(y) = exp(mean over tokens of log π(yₜ) − log Σᵥ π(v)²).

    The weight says how likely the policy is to write the pair itself; no gradient passes through it (eq. 1 and 2).
    """

    name: ClassVar[str] = "wpo"
    paper: ClassVar[str] = "arXiv:2406.11827, eq. 1 and 2"
    purpose: ClassVar[str] = "Comparisons of other models' answers: those that the policy might write count more."
    avoid: ClassVar[str] = "Avoid for the model's own samples, whose weights are all alike; it only scales the rate."
    watch: ClassVar[str] = (
        LogRatioObjective.watch
        + "\nThe first `loss` over ln 2 is the mean weight of a pair. Later judge by `rewards/accuracies`, which has "
        "no weights: they fall as answers grow less likely, and the `loss` with them."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + UNLEARNED
        + "\nA first `loss` of hundredths: the model finds the pairs so unlikely that next to nothing is learned. An "
        "SFT stage on the chosen answers first, or `dpo`."
    )

    alignment: Literal["sampled", "none"] = "sampled"
    """What a token's probability is measured by: that of a token sampled in its place, or nothing (eq. 1). sampled
    is what the paper recommends."""

    @property
    def wants_squares(self) -> bool:
        return self.alignment == "sampled"

    def preference_losses(self, pairs: Pairs) -> Tensor:
        weight = pairs.chosen / pairs.chosen_length + pairs.rejected / pairs.rejected_length
        if self.alignment == "sampled":
            if pairs.log_squares is None:
                raise InputError("objective wpo needs the outputs' log_squares")
            weight = weight - pairs.log_squares.sum(dim=1)
        return super().preference_losses(pairs) * weight.detach().exp()

    def start(self) -> None:
        return None
