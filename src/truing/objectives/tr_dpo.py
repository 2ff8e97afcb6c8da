"""Trust Region DPO: the reference follows the policy."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truing.objectives.dpo import DPO
from truing.objectives.pairwise import FROM_ZERO


class TRDPO(DPO):
    """L = −log σ(β[(log π/π_ref)(y⁺) − (log π/π_ref)(y⁻)]), π_ref ← π after each n steps, n = `every`.

    That is DPO with the paper's hard update. The paper's soft update mixes weights; a mixture of two adapters'
    factors is not that, so it is not offered.
    """

    name: ClassVar[str] = "tr_dpo"
    paper: ClassVar[str] = "arXiv:2404.09656, eq. 6"
    purpose: ClassVar[str] = "Long runs on comparisons, in which DPO would be held back by a reference left far behind."
    avoid: ClassVar[str] = "Avoid where the start must stay near: each new reference allows as much distance again."
    watch: ClassVar[str] = (
        FROM_ZERO
        + "\nAfter every `every` steps policy and reference are one again: `rewards/margins` returns to 0 and `loss` "
        "to ln 2, on the next line and in an evaluation made at that very step. Compare lines equally far from a move."
        "\n`eval_logps/chosen` shows the change over all moves, `rewards/chosen` only that since the last."
    )
    failure: ClassVar[str] = (
        DPO.failure
        + "\n`eval_logps/chosen` falls further after each move: the drift adds up. A larger `every`, a lower "
        "`optim.lr`."
    )

    every: int = Field(default=512, ge=1)
    """Steps between updates of the reference; 512 in the paper."""

    @property
    def reference_every(self) -> int:
        return self.every
