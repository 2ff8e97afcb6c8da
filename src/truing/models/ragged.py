"""Attention over trees in one call of torch's kernel for sequences of unequal length (flash attention, on CUDA)."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from truing.models.tree_plan import Segments, TreePlan

DTYPES = (torch.float16, torch.bfloat16)
WIDEST = 256
"""Numbers of a head that flash attention takes at most; it wants a multiple of 8."""


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether flash attention has a kernel for these types and widths."""
    width = query.shape[-1]
    alike = query.dtype == key.dtype == value.dtype and value.shape[-1] == width
    return alike and query.dtype in DTYPES and width % 8 == 0 and width <= WIDEST


def ragged_trees(
    query: Tensor,  # float [1, H, T, D]
    key: Tensor,  # float [1, Hkv, T, D]
    value: Tensor,  # float [1, Hkv, T, D]
    plan: TreePlan,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attend with one kernel call whatever the layout: float [1, T, H, D].

    Prompts' keys are copied once for every further completion. Merging two calls by their log-sum-exps would spare the
    copies, but the kernel's backward pass ignores what flows back into a log-sum-exp.
    """
    if query.shape[2] == 0:
        return torch.zeros_like(query).transpose(1, 2)
    segments = plan.segments(query.device)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if segments.gather is not None:
        key, value = _Gathered.apply(key, value, segments.gather)  # type: ignore[no-untyped-call]
    return _attend(query, key, value, segments, scale, plan.cutting(window))[None]


class _Gathered(torch.autograd.Function):
    """Keys and values [T, Hkv, D] in the order of the segments; a prompt's gradients are summed in float32."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, gather: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(gather)
        ctx.size = key.shape[0]
        return key.index_select(0, gather), value.index_select(0, gather)

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gather,) = ctx.saved_tensors

        def summed(grad: Tensor) -> Tensor:
            wide = torch.promote_types(grad.dtype, torch.float32)
            total = grad.new_zeros(ctx.size, *grad.shape[1:], dtype=wide)
            return total.index_add_(0, gather, grad.to(wide)).to(grad.dtype)

        return summed(grads[0]), summed(grads[1]), None


def _attend(
    query: Tensor,  # float [T, H, D]
    key: Tensor,  # float [keys, Hkv, D]
    value: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
) -> Tensor:
    """Call the kernel, which lays the causal order at the last query and the last key of each segment: [T, H, D]."""
    kernel, grouped = varlen()
    extra: dict[str, Any] = {}
    if query.shape[1] != key.shape[1] and grouped:
        extra["enable_gqa"] = True
    elif query.shape[1] != key.shape[1]:
        copies = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
    out: Tensor = kernel(
        query,
        key,
        value,
        segments.query_ends,
        segments.key_ends,
        segments.longest_query,
        segments.longest_key,
        scale=scale,
        # A window counts the keys to the left of a query; truing's counts the query itself too.
        window_size=(-1 if window is None else window - 1, 0),
        **extra,
    )
    return out


@cache
def varlen() -> tuple[Any, bool]:
    """Torch's kernel, and whether it takes grouped heads: torch 2.11 does not, 2.12 does. Raises ImportError."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters
