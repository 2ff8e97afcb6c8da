"""Simple Preference Optimization."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import Pairs, PairwiseObjective


class SimPO(PairwiseObjective):
    """L = −log σ(β[log π(y⁺)/|y⁺| − log π(y⁻)/|y⁻|] − γ), γ = β·`gamma_beta_ratio` (eq. 6). No reference."""

    name: ClassVar[str] = "simpo"
    paper: ClassVar[str] = "arXiv:2405.14734, eq. 6"
    purpose: ClassVar[str] = "Comparisons whose chosen answers are longer: rewards are per token and need no reference."
    avoid: ClassVar[str] = "Avoid high rates and long runs: nothing pulls the policy back to where it started."
    watch: ClassVar[str] = (
        "Rewards are β times the mean log-prob of a token, −1 to −4 at β 2. `rewards/accuracies` starts where the "
        "model's own taste is, often near 0.5, and should rise, `eval_rewards/accuracies` with it."
        "\n`rewards/margins` starts near 0 and should pass γ, 1 by default; where it is 0 the `loss` is ln(1 + e^γ), "
        "1.31."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`eval_logps/chosen` falls without end, or samples loop: no reference holds the policy. A lower `optim.lr` "
        "(3e-7 to 1e-6 with full weights), fewer steps, or `dpo_norm`."
    )
    learning_rate: ClassVar[float] = 5e-7
    learning_rate_range: ClassVar[tuple[float, float]] = (5e-8, 2e-5)

    beta: float = Field(default=2.0, gt=0)
    """Scale of the per-token reward; 2–10 in the paper, 2 for its Llama 3 base model."""
    gamma_beta_ratio: float = Field(default=0.5, ge=0)
    """Target margin as a share of β; 0.5 in the authors' settings for the same model."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def pair_losses(self, pairs: Pairs) -> Tensor:
        difference = pairs.chosen / pairs.chosen_length - pairs.rejected / pairs.rejected_length
        return -F.logsigmoid(self.beta * (difference - self.gamma_beta_ratio))

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.beta * pairs.chosen / pairs.chosen_length, self.beta * pairs.rejected / pairs.rejected_length
