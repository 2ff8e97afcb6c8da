"""AdamW in two forms, and what each keeps of a parameter as plain tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from truing.core.extras import require
from truing.training.settings import OptimSettings

SMALLEST, BLOCK = 4096, 256
"""bitsandbytes keeps moments of smaller tensors in float32, and of others a float32 scale for each block."""

TABLES = ("qmap1", "qmap2")
"""What 8-bit numbers mean: the same for every parameter, and no state."""


def check_state(settings: OptimSettings) -> None:
    """Refuse 8-bit moments where their package is missing."""
    if settings.state == "8bit":
        require("optim.state: 8bit", ("bitsandbytes",), "qlora")


def adam(groups: Iterable[dict[str, Any]], settings: OptimSettings) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101) over groups as torch takes them, with moments in float32 or in 8 bits.

    The latter are those of arXiv:2110.02861: blocks of 256 numbers share a scale.
    """
    how: dict[str, Any] = {"betas": (settings.beta1, settings.beta2), "eps": settings.eps}
    if settings.state == "fp32":
        return torch.optim.AdamW(list(groups), fused=True, **how)
    check_state(settings)
    from bitsandbytes.optim.adamw import AdamW8bit

    narrow: torch.optim.Optimizer = AdamW8bit(list(groups), min_8bit_size=SMALLEST, **how)  # type: ignore[no-untyped-call]
    return narrow


def moments(optimizer: torch.optim.Optimizer, parameter: Parameter) -> dict[str, Tensor]:
    """What is kept of a parameter; nothing before its first update."""
    kept = optimizer.state.get(parameter, {})
    return {name: torch.as_tensor(value) for name, value in kept.items() if name not in TABLES}


@torch.no_grad()
def restore(optimizer: torch.optim.Optimizer, parameter: Parameter, kept: Mapping[str, Tensor]) -> None:
    """Take back what `moments` returned."""
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.state[parameter] = {name: value.clone() for name, value in kept.items()}
        return
    narrow: Any = optimizer
    place = next(
        (number, index)
        for number, group in enumerate(narrow.param_groups)
        for index, other in enumerate(group["params"])
        if other is parameter
    )
    narrow.init_state(narrow.param_groups[place[0]], parameter, *place)
    state = narrow.state[parameter]
    for name, value in kept.items():
        state[name] = int(value) if name == "step" else value.to(parameter.device, copy=True)


def moment_bytes(numbers: int, settings: OptimSettings) -> int:
    """Bytes of both moments of a parameter of so many numbers."""
    if settings.state == "fp32" or numbers < SMALLEST:
        return 8 * numbers
    return 2 * (numbers + 4 * -(-numbers // BLOCK))
