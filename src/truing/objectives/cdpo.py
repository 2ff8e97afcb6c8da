"""Conservative DPO."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from truing.objectives.dpo import DPO


class CDPO(DPO):
    """L = −(1−ε) log σ(z) − ε log σ(−z): DPO that believes a share ε of the labels to be wrong."""

    name: ClassVar[str] = "cdpo"
    paper: ClassVar[str] = "Mitchell 2023, note on noisy preferences and cDPO; eq. 3"
    purpose: ClassVar[str] = "Comparisons with some wrong labels: margins are drawn to a finite value."
    avoid: ClassVar[str] = "Avoid on clean labels, where it holds margins back for nothing."

    label_smoothing: float = Field(default=0.1, gt=0, lt=0.5)
    """ε, the share of pairs believed to be labelled the wrong way round."""
