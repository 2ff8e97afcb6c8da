"""Contrastive Preference Optimization."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import Pairs, PairwiseObjective, chosen_nll


class CPO(PairwiseObjective):
    """L = −log σ(β[log π(y⁺) − log π(y⁻)]) + `sft_weight` · NLL(y⁺) per token. No reference."""

    name: ClassVar[str] = "cpo"
    paper: ClassVar[str] = "arXiv:2401.08417, eq. 6; the NLL per token as in its authors' code"
    purpose: ClassVar[str] = "Comparisons of equal length, as in translation, without memory for a reference."
    avoid: ClassVar[str] = "Avoid when lengths differ: a sum of log-probs alone favours the short (`simpo`)."
    watch: ClassVar[str] = (
        "Rewards are β times the log-prob of the whole answer, about −10 at β 0.1 and 100 tokens. `rewards/margins` "
        "starts at the difference that the model makes already and should rise, `eval_rewards/accuracies` with it."
        "\n`logps/chosen` should not fall: the NLL holds it."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\nA first `rewards/margins` of several units: a difference in length, which outweighs the rest. Take "
        "`simpo`."
        "\n`eval_logps/chosen` falls: a higher `sft_weight`, a lower `optim.lr`."
    )
    learning_rate: ClassVar[float] = 1e-6

    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference of log-probs; 0.1 as in DPO's paper."""
    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the NLL of the chosen answer; 1 in the paper."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def pair_losses(self, pairs: Pairs) -> Tensor:
        return -F.logsigmoid(self.beta * (pairs.chosen - pairs.rejected)) + self.sft_weight * chosen_nll(pairs)

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.beta * pairs.chosen, self.beta * pairs.rejected
