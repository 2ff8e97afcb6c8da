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
    watch: ClassVar[str] = (
        DPO.watch
        + "\nA pair's margin is drawn to ln((1−ε)/ε), 2.2 at ε 0.1, and `loss` cannot fall below the entropy of ε, "
        "0.325 there."
    )
    failure: ClassVar[str] = (
        DPO.failure
        + "\n`rewards/margins` stands at that value and `eval_rewards/accuracies` is no better than with `dpo`: ε is "
        "too high."
    )

    label_smoothing: float = Field(default=0.1, gt=0, lt=0.5)
    """ε, the share of pairs believed to be labelled the wrong way round; 0.1 is a moderate choice."""
