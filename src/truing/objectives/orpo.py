"""Odds Ratio Preference Optimization."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from truing.objectives.pairwise import Pairs, PairwiseObjective, chosen_nll


class ORPO(PairwiseObjective):
    """L = NLL(y⁺) − β log σ(log odds(y⁺) − log odds(y⁻)), odds = p/(1−p), p the per-token geometric mean (eq. 4–7)."""

    name: ClassVar[str] = "orpo"
    paper: ClassVar[str] = "arXiv:2403.07691, eq. 2–7 (β is the paper's λ)"
    purpose: ClassVar[str] = "Comparisons without an SFT stage before: instruction and preference in one, no reference."
    avoid: ClassVar[str] = "Avoid after an SFT stage that already fits the chosen answers; `dpo` has more to give."
    watch: ClassVar[str] = (
        "`loss` is mostly the NLL of the chosen answers per token and falls as in `sft`; the odds ratio adds β ln 2, "
        "0.07, where both answers are equally likely."
        "\n`logps/chosen` should rise, and `rewards/margins`, β times the difference of mean log-probs, from near 0 as "
        "well."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\n`logps/rejected` rises as fast as `logps/chosen`: the NLL teaches what both answers share. A higher "
        "`beta`."
    )
    learning_rate: ClassVar[float] = 5e-6
    learning_rate_range: ClassVar[tuple[float, float]] = (5e-7, 1e-4)

    beta: float = Field(default=0.1, gt=0)
    """λ of the paper: weight of the odds-ratio term; 0.1 is TRL's default."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def pair_losses(self, pairs: Pairs) -> Tensor:
        odds = _log_odds(pairs.chosen / pairs.chosen_length) - _log_odds(pairs.rejected / pairs.rejected_length)
        return chosen_nll(pairs) - self.beta * F.logsigmoid(odds)

    def implicit_rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.beta * pairs.chosen / pairs.chosen_length, self.beta * pairs.rejected / pairs.rejected_length


def _log_odds(mean_logprob: Tensor) -> Tensor:
    """log(p / (1−p)) from log p. A probability of one has no finite odds: p is held below 1 − 1e-6."""
    held = mean_logprob.clamp_max(-1e-6)
    return held - torch.log(-torch.expm1(held))
