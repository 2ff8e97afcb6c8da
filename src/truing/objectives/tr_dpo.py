"""Trust Region DPO: the reference follows the policy."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truing.objectives.dpo import DPO


class TRDPO(DPO):
    """DPO whose reference becomes the policy after every `every` steps (the paper's hard update).

    The paper's soft update mixes weights; a mixture of two adapters' factors is not that, so it is not offered.
    """

    name: ClassVar[str] = "tr_dpo"
    paper: ClassVar[str] = "arXiv:2404.09656, eq. 6"
    purpose: ClassVar[str] = "Long runs on comparisons, in which DPO would be held back by a reference left far behind."
    avoid: ClassVar[str] = "Avoid where the start must stay near: each new reference allows as much distance again."

    every: int = Field(default=512, ge=1)
    """Steps between updates of the reference; 512 in the paper."""

    @property
    def reference_every(self) -> int:
        return self.every
