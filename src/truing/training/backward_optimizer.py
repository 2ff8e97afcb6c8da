"""The update of each weight as soon as its gradient is there, so that all gradients are never there at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from truing.core.errors import NothingToTrain
from truing.core.parameters import ParameterGroup
from truing.training.moments import adam
from truing.training.optimizer import Optimizer
from truing.training.settings import OptimSettings


class BackwardOptimizer(Optimizer):
    """Updates in the backward pass, which has to be the only one of a step.

    A weight whose gradient is not finite is left as it was; those with a finite one have moved by then.
    """

    def __init__(self, groups: Sequence[ParameterGroup], settings: OptimSettings, *, cut: bool = False) -> None:
        super().__init__(groups, settings, cut=cut)
        self._squares: list[Tensor] = []  # float32 [] each: the squared norm of a gradient that was used and freed
        for name, stored in self._stored.items():
            self._update_when_ready(name, stored)

    def _adams(
        self, groups: Sequence[dict[str, Any]], settings: OptimSettings
    ) -> dict[Parameter, torch.optim.Optimizer]:
        """One for each parameter, to be stepped by itself."""
        return {
            parameter: adam([{**group, "params": [parameter]}], settings)
            for group in groups
            for parameter in group["params"]
        }

    def zero_grad(self) -> None:
        super().zero_grad()
        self._squares.clear()

    def clip(self) -> float:
        """Return the norm of the gradient that was there; nothing is scaled."""
        if not self._squares:
            raise NothingToTrain("the loss has no gradient: no trainable parameter took part in it")
        return math.sqrt(float(torch.stack(self._squares).sum()))

    def step(self) -> None:
        """Do nothing: the weights have been updated."""

    def _update_when_ready(self, name: str, stored: Parameter) -> None:
        trained = self._trained[name]

        # Called after the hook that gathers a narrow parameter's gradient in its master.
        def update(_: Tensor) -> None:
            assert trained.grad is not None
            square = trained.grad.square().sum()
            self._squares.append(square.detach().cpu())
            if bool(torch.isfinite(square)):
                self._owners[trained].step()
                self._write(name)
            trained.grad = None

        stored.register_post_accumulate_grad_hook(update)  # type: ignore[no-untyped-call]


def optimizer_for(groups: Sequence[ParameterGroup], settings: OptimSettings, *, cut: bool = False) -> Optimizer:
    """The optimizer that a recipe asks for; `cut` says that parameters are cut over ranks."""
    return (BackwardOptimizer if settings.in_backward else Optimizer)(groups, settings, cut=cut)
