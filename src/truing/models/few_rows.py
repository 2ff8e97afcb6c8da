"""Products of few rows by a weight on a CPU, for a model that writes: over and over, and with the same weights.

A large weight is copied as oneDNN reads it. A small one is multiplied the other way round, W·xᵀ in place of x·Wᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from truing.models.lora.layers import AdaptedLinear, DoraLowRank, LowRank
from truing.models.packed import packed, product

FEWEST, MOST = 12, 64
"""Rows for which W·xᵀ is faster: 32 rows, 512 wide, by 1,408 took 0.42 against 0.77 ms in float32 on two threads; with
fewer than 12 it is slower, with more than 64 the same."""

WORTH_COPYING = 2**17
"""Elements of a weight from which on a copy of it is faster."""

ROOM = 2**30
"""Bytes of copies that may exist beside the weights; what comes after is multiplied without one."""

Forward = Callable[[Tensor], Tensor]


@contextmanager
def few_rows(module: nn.Module) -> Iterator[None]:
    """While it lasts, the linear layers of a model on a CPU multiply few rows the faster way.

    No gradient is kept, and weights must stay as they are; another adapter may be chosen.
    """
    changed = []
    room = ROOM
    for layer in module.modules():
        if type(layer) not in (nn.Linear, AdaptedLinear) or "forward" in layer.__dict__:
            continue
        weight = layer.weight
        if not isinstance(weight, Tensor) or weight.device.type != "cpu" or not weight.is_floating_point():
            continue
        bias = layer.bias if isinstance(layer.bias, Tensor) else None
        adapter = layer.selected if isinstance(layer, AdaptedLinear) else _none
        size = weight.numel() * weight.element_size()
        copies = weight.numel() >= WORTH_COPYING and size <= room
        room -= size if copies else 0
        by = _by_a_copy if copies else _turned
        layer.__dict__["forward"] = by(layer.forward, weight, bias, adapter)  # looked up before the class's
        changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.__dict__["forward"]


def _by_a_copy(usual: Forward, weight: Tensor, bias: Tensor | None, selected: Callable[[], LowRank | None]) -> Forward:
    """Multiply by a copy, made at the first call; in float32 with the adapter in it, whatever its kind."""
    copies: dict[LowRank | None, Tensor | None] = {}
    exact = weight.dtype == torch.float32  # in half precision a merged weight rounds small updates away

    def forward(x: Tensor) -> Tensor:
        adapter = selected()
        inside = adapter if exact else None
        if inside not in copies:
            copies.clear()
            copies[inside] = packed(weight if inside is None else inside.adapted_weight(weight), WORTH_COPYING)
        copy = copies[inside]
        if copy is None or x.dtype != weight.dtype or (adapter is not inside and isinstance(adapter, DoraLowRank)):
            return usual(x)
        out = product(x, copy, bias)
        if adapter is not None and inside is None:
            lora_a, lora_b = (factor.to(x.dtype) for factor in adapter.factors())
            low = x.reshape(-1, x.shape[-1]) @ lora_a.t()
            out.view(-1, out.shape[-1]).addmm_(low, lora_b.t(), alpha=adapter.scale)
        return out

    return forward


def _turned(usual: Forward, weight: Tensor, bias: Tensor | None, selected: Callable[[], LowRank | None]) -> Forward:
    """Multiply the other way round where the number of rows makes that faster."""

    def forward(x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        adapter = selected()
        if not FEWEST <= rows <= MOST or x.dtype != weight.dtype or isinstance(adapter, DoraLowRank):
            return usual(x)
        columns = x.reshape(rows, -1).t()  # [in, R]
        out = torch.mm(weight, columns)  # [out, R]
        if adapter is not None:
            lora_a, lora_b = (factor.to(x.dtype) for factor in adapter.factors())
            out.addmm_(lora_b, lora_a @ columns, alpha=adapter.scale)
        if bias is not None:
            out += bias[:, None]
        answer: Tensor = out.t().view(*x.shape[:-1], -1)
        return answer

    return forward


def _none() -> LowRank | None:
    return None
