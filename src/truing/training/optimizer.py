"""AdamW over named parameters, with float32 master weights where a parameter is stored more narrowly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from truing.core.errors import NothingToTrain, RunError
from truing.core.parameters import ParameterGroup
from truing.models.cuts import placed_like, whole_tensor
from truing.training.moments import adam, moment_bytes, moments, restore
from truing.training.ranks import Ranks
from truing.training.settings import OptimSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Fused AdamW (decoupled decay, arXiv:1711.05101) that accumulates gradients in float32.

    A bf16 parameter gets a float32 master copy: each micro-batch's bf16 gradient is added to the master's float32
    gradient as soon as autograd has produced it, and freed. Parameters that are cut over ranks stay cut in all that is
    made of them.
    """

    def __init__(self, groups: Sequence[ParameterGroup], settings: OptimSettings, *, cut: bool = False) -> None:
        self.cut = cut
        self._settings = settings
        self._stored: dict[str, Parameter] = {}
        self._trained: dict[str, Parameter] = {}
        torch_groups: list[dict[str, Any]] = []
        for group in groups:
            for decay, names in _by_decay(group.parameters, settings.weight_decay):
                trained = [self._adopt(name, group.parameters[name]) for name in names]
                torch_groups.append({"params": trained, "lr": group.lr, "weight_decay": decay})
        if not self._trained:
            raise NothingToTrain("no parameter is trainable; choose an adapter, or adapter: none for full weights")
        self._owners = self._adams(torch_groups, settings)
        # Each group with its peak, which its rate is until the first step begins.
        self._rates = [(group, float(group["lr"])) for one in self._distinct() for group in one.param_groups]
        self._max_norm = settings.max_grad_norm

    def _adams(
        self, groups: Sequence[dict[str, Any]], settings: OptimSettings
    ) -> dict[Parameter, torch.optim.Optimizer]:
        """Which AdamW updates each parameter: one for all."""
        one = adam(groups, settings)
        return {parameter: one for group in groups for parameter in group["params"]}

    def _distinct(self) -> list[torch.optim.Optimizer]:
        return list(dict.fromkeys(self._owners.values()))

    @property
    def parameter_count(self) -> int:
        """Trained numbers."""
        return sum(p.numel() for p in self._trained.values())

    @property
    def state_bytes(self) -> int:
        """Bytes of `state` once a step has been made."""
        return sum(p.nbytes + moment_bytes(p.numel(), self._settings) for p in self._trained.values())

    def _adopt(self, name: str, stored: Parameter) -> Parameter:
        self._stored[name] = stored
        if stored.dtype == torch.float32:
            self._trained[name] = stored
            return stored
        master = Parameter(stored.detach().float())
        self._trained[name] = master

        def collect(parameter: Tensor) -> None:
            if parameter.grad is None:
                return
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

        stored.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]
        return master

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        for parameter in self._trained.values():
            parameter.grad = None

    def add_over(self, ranks: Ranks) -> None:
        """Make each gradient the sum of those that the ranks have; one that some have not is zero there."""
        if not ranks.several or self.cut:  # torch has added up what is cut
            return
        trained = list(self._trained.values())
        found = ranks.everyone([int(p.grad is not None) for p in trained])
        moved = [p for p, having in zip(trained, zip(*found, strict=True), strict=True) if any(having)]
        for parameter in moved:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ranks.add([p.grad for p in moved if p.grad is not None])

    def clip(self) -> float:
        """Scale the gradient down to the largest norm allowed; return its norm before that."""
        with_grad = [p for p in self._trained.values() if p.grad is not None]
        if not with_grad:
            raise NothingToTrain("the loss has no gradient: no trainable parameter took part in it")
        limit = self._max_norm if self._max_norm is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(with_grad, limit)
        return float(whole_tensor(norm) if self.cut else norm)

    def begin(self, factor: float) -> None:
        """Forget the last gradients; the next update is at `factor` times the peak rates."""
        self.zero_grad()
        for group, peak in self._rates:
            group["lr"] = peak * factor

    def step(self) -> None:
        """Update the weights at the rates that `begin` has set."""
        for one in self._distinct():
            one.step()
        for name in self._stored:
            self._write(name)

    @torch.no_grad()
    def _write(self, name: str) -> None:
        """Round a master to where the model has it."""
        if self._stored[name] is not self._trained[name]:
            self._stored[name].copy_(self._trained[name])

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters by name, in float32."""
        return {name: p.detach() for name, p in self._trained.items()}

    def state(self) -> dict[str, Tensor]:
        """Weights and moments as flat tensors: `weight.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`.

        8-bit moments are `state1`, `state2` and their scales `absmax1`, `absmax2`.
        """
        out = {f"weight.{name}": p.detach() for name, p in self._trained.items()}
        for name, parameter in self._trained.items():
            for key, value in moments(self._owners[parameter], parameter).items():
                out[f"{key}.{name}"] = value
        return out

    def blank_state(self) -> dict[str, Tensor]:
        """What `state` returns once every parameter has been moved, in shape and kind; the numbers mean nothing."""
        out: dict[str, Tensor] = {}
        for name, parameter in self._trained.items():
            own = parameter.detach()
            out |= {f"{key}.{name}": own for key in ("weight", *MOMENTS)}
            out[f"step.{name}"] = torch.zeros(())
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned; refuses a state of other parameters."""
        expected = {f"weight.{name}" for name in self._trained}
        found = {key for key in state if key.startswith("weight.")}
        if expected != found:
            odd = sorted(expected ^ found)[:3]
            raise RunError(f"the checkpoint was written for other parameters: {', '.join(odd)} do not match")
        with torch.no_grad():
            for name, parameter in self._trained.items():
                weight = self._placed(state[f"weight.{name}"], parameter)
                parameter.copy_(weight)
                self._stored[name].copy_(weight)
        kept: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            what, _, name = key.partition(".")
            if what != "weight":
                kept.setdefault(name, {})[what] = value
        for name, parameter in self._trained.items():
            if name in kept:
                placed = {
                    what: self._placed(value, parameter) if what in MOMENTS else value
                    for what, value in kept[name].items()
                }
                restore(self._owners[parameter], parameter, placed)

    def _placed(self, value: Tensor, parameter: Parameter) -> Tensor:
        return placed_like(value, parameter) if self.cut else value


def _by_decay(parameters: Mapping[str, Parameter], decay: float) -> list[tuple[float, list[str]]]:
    if not decay:
        return [(0.0, list(parameters))]
    matrices = [name for name, p in parameters.items() if p.ndim >= 2]
    vectors = [name for name, p in parameters.items() if p.ndim < 2]
    return [(rate, names) for rate, names in ((decay, matrices), (0.0, vectors)) if names]
