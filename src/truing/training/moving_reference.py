"""A reference that becomes the policy every so many steps, and is part of a run's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from truing.models.cuts import placed_like
from truing.models.lora.adapters import Adapters

PREFIX = "reference."


@dataclass(frozen=True, slots=True)
class MovingReference:
    """Copies one adapter over another."""

    adapters: Adapters
    policy: str
    reference: str
    every: int
    """Steps."""
    cut: bool = False
    """Whether their parameters are cut over ranks."""

    def after(self, step: int) -> None:
        """Move, if it is time; `step` counts the steps done."""
        if step % self.every == 0:
            self.adapters.overwrite(self.policy, self.reference)

    def state(self) -> dict[str, Tensor]:
        """The reference as flat tensors, for a checkpoint."""
        return {PREFIX + key: tensor.detach() for key, tensor in self.adapters.parameters(self.reference).items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        for key, parameter in self.adapters.parameters(self.reference).items():
            parameter.copy_(placed_like(tensors[PREFIX + key], parameter) if self.cut else tensors[PREFIX + key])
