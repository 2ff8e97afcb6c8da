"""Self-Play Preference Optimization with hard labels."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import LogRatioObjective, Pairs, PairwiseObjective


class SPPO(LogRatioObjective):
    """L = (h⁺ − 1/(2β))² + (h⁻ + 1/(2β))², h = log π/π_ref: each answer towards its own target, not only apart."""

    name: ClassVar[str] = "sppo"
    paper: ClassVar[str] = "arXiv:2405.00675, eq. 4.7, winning probability 1 or 0, β = 1/η"
    purpose: ClassVar[str] = "Comparisons of the model's own samples, round after round."
    avoid: ClassVar[str] = "Avoid for answers from elsewhere: a fixed target in nats suits the model's own samples."
    watch: ClassVar[str] = (
        "`loss` starts at 1/(2β²), 500,000 by default, and falls by a few per cent at most: the targets are 1/(2β), "
        "500 nats, away. `grad_norm` is large throughout, and each step is scaled down to `optim.max_grad_norm`."
        "\nRewards are β times the log-ratio: `rewards/chosen` should rise above 0 and `rewards/rejected` fall below "
        "it, by thousandths (0.005 is 5 nats); `eval_rewards/accuracies` rises from 0.5."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`eval_logps/chosen` moves by tens of nats, either way: so far from the targets the pull never weakens, "
        "and `optim.lr` and the number of steps alone decide how far it goes. Lower them."
    )

    beta: float = Field(default=1e-3, gt=0)
    """1/η: a chosen answer's log-ratio is drawn to 1/(2β); η is 1,000 in the paper."""

    def pair_losses(self, pairs: Pairs) -> Tensor:
        target = 1 / (2 * self.beta)
        return (pairs.chosen_logratio - target).square() + (pairs.rejected_logratio + target).square()

    def start(self) -> float:
        return 1 / (2 * self.beta**2)
