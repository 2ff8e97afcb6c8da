"""Attention over trees: a completion sees its own prompt and itself, so a prompt is computed once.

A batch is one row of T tokens; `tree_plan` cuts its layout into blocks, and each block is one or a few kernel calls.
On a CPU the whole layout is one autograd function over the fused kernel. A GPU takes it in one call (`ragged`, or
`flex` where scores are soft-capped) if that kernel has passed its trial there, else by `scaled_dot_product_attention`.
Sinks, and soft caps elsewhere, which fused kernels lack, are computed from explicit scores.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from truing.core.errors import ModelError
from truing.models.flex import flex_trees
from truing.models.growth import Growth
from truing.models.kernel_trial import try_kernel
from truing.models.kv_cache import Cache, Prefill
from truing.models.ragged import ragged_trees
from truing.models.scored import scored_trees
from truing.models.tree_plan import Bush, Fork, Part, TreePlan

NAME = "truing_tree"

GPUS = ("cuda",)
"""Kinds of devices where kernels that take a whole layout are tried."""

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def register() -> None:
    """Make tree attention known to transformers, once; models then choose it by `NAME`.

    It is *not* made known as a mask: transformers then builds none, and the layout alone says who sees whom.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)


def tree_attention(
    module: nn.Module,
    query: Tensor,  # float [1, H, T, D]
    key: Tensor,  # float [1, Hkv, T, D]
    value: Tensor,  # float [1, Hkv, T, Dv]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree_layout: TreePlan | Cache | Growth | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,  # float [H], logits of attention sinks
    position_bias: Tensor | None = None,
    **unused: Any,  # transformers hands every attention function whatever its models pass along
) -> tuple[Tensor, None]:
    """Attend as the layout says; the signature is that of transformers' attention functions. Returns [1, T, H, Dv].

    Raises ModelError where the model asks for something that would be left out silently.
    """
    if tree_layout is None:
        raise ModelError(f"{type(module).__name__} was called without its batch's layout; run it through LanguageModel")
    if attention_mask is not None or position_bias is not None:
        raise ModelError(f"{type(module).__name__} adds a mask or bias of its own, which tree attention cannot place")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or None
    if isinstance(tree_layout, Cache | Growth):
        return tree_layout.attend(query, key, value, scale, window, softcap, s_aux), None
    if isinstance(tree_layout, Prefill):
        tree_layout.keep(key, value)
    if window is not None:
        tree_layout.windows.add(window)
    if query.device.type in GPUS and dropout == 0.0 and s_aux is None:
        trial = try_kernel(query, key, value, window, softcap)
        if trial.passed and softcap is not None:
            return flex_trees(query, key, value, tree_layout, scale, window, softcap), None
        if trial.passed:
            return ragged_trees(query, key, value, tree_layout, scale, window), None
        tree_layout.refused.add(trial.sentence)
    if softcap is not None or s_aux is not None:
        return scored_trees(query, key, value, tree_layout, scale, window, dropout, softcap, s_aux), None
    if query.device.type == "cpu" and dropout == 0.0 and value.shape[-1] == key.shape[-1]:
        return _FlashTrees.apply(query, key, value, tree_layout, scale, window), None  # type: ignore[no-untyped-call]
    return fused_trees(query, key, value, tree_layout, scale, window, dropout), None


class _FlashTrees(torch.autograd.Function):
    """The CPU's fused kernel, forward and backward, over a whole layout; grouped key heads need no copies."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, scale: float, window: int | None
    ) -> Tensor:
        kind = query.dtype
        # The kernel is no faster in bfloat16, its backward up to 3 times slower; and merging wants float32 in any case.
        wide = torch.promote_types(kind, torch.float32)
        inputs = query, key, value
        query, key, value = (_rows(x, wide) for x in (query, key, value))
        _, heads, size, width = query.shape
        out = query.new_empty(1, size, heads, width).transpose(1, 2)
        lse = query.new_empty(1, size, heads).transpose(1, 2)
        for part in plan.parts(window):
            rows, columns = (2, *part.rows), (2, *part.columns)
            mask = None if part.bush is None else plan.mask(part.bush, window, query.dtype, query.device)
            found, sums = FLASH(
                query.narrow(*rows),
                key.narrow(*columns),
                value.narrow(*columns),
                0.0,
                part.own and mask is None,
                attn_mask=mask,
                scale=scale,
            )
            if part.own:
                out.narrow(*rows).copy_(found)
                lse.narrow(*rows).copy_(sums)
            else:
                _merge(out.narrow(*rows), lse.narrow(*rows), found, sums)
        result = out.transpose(1, 2).to(kind)
        ctx.save_for_backward(*inputs, result, lse)
        ctx.plan, ctx.scale, ctx.window = plan, scale, window
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, result, lse = ctx.saved_tensors
        grad, query, key, value, out = (
            _rows(x, lse.dtype) for x in (grads[0].transpose(1, 2), *tensors, result.transpose(1, 2))
        )
        into = _GradBuffers(query, key, value)
        # With the merged output and log-sum-exp in every call each part's gradient is exact: none flows by the merge.
        for part in ctx.plan.parts(ctx.window):
            mask = None if part.bush is None else ctx.plan.mask(part.bush, ctx.window, query.dtype, query.device)
            rows, columns = (2, *part.rows), (2, *part.columns)
            into.take(
                part,
                FLASH_BACKWARD(
                    grad.narrow(*rows),
                    query.narrow(*rows),
                    key.narrow(*columns),
                    value.narrow(*columns),
                    out.narrow(*rows),
                    lse.narrow(*rows),
                    0.0,
                    part.own and mask is None,
                    attn_mask=mask,
                    scale=ctx.scale,
                ),
            )
        kind = result.dtype
        return into.query.to(kind), into.key.to(kind), into.value.to(kind), None, None, None


class _GradBuffers:
    """Gradients of the whole token axis; a token's first part writes them, later ones add."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        self.query, self.key, self.value = (
            x.new_empty(1, x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in (query, key, value)
        )

    def take(self, part: Part, grads: tuple[Tensor, Tensor, Tensor]) -> None:
        wheres = (part.rows, part.columns, part.columns)
        for buffer, where, grad in zip((self.query, self.key, self.value), wheres, grads, strict=True):
            here = buffer.narrow(2, *where)
            if part.own:
                here.copy_(grad)
            else:
                here.add_(grad)


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in this type, with each head's numbers side by side as the kernel wants them."""
    x = x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def _merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    """Bring attention over further keys into `out` and `lse`."""
    total = torch.logaddexp(lse, more_lse)
    torch.lerp(out, more, (more_lse - total).exp_().unsqueeze(-1), out=out)
    lse.copy_(total)


def fused_trees(
    query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, scale: float, window: int | None, dropout: float
) -> Tensor:
    """Attend with `scaled_dot_product_attention` alone, for other devices and unequal widths: float [1, T, H, Dv].

    A completion's keys are gathered behind its prompt's, which keeps every call causal and so on a fused kernel.
    """
    grouped = query.shape[1] != key.shape[1]
    parts: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool) -> None:
        parts.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
            )
        )

    for block in plan.blocks(window):
        if isinstance(block, Fork):
            here = (2, block.start, block.prompt)
            prompt_key, prompt_value = key.narrow(*here), value.narrow(*here)
            attend(query.narrow(*here), prompt_key, prompt_value, None, True)
            for start, size in block.completions:
                keys = torch.cat([prompt_key, key.narrow(2, start, size)], dim=2)
                values = torch.cat([prompt_value, value.narrow(2, start, size)], dim=2)
                attend(query.narrow(2, start, size), keys, values, causal_lower_right(size, block.prompt + size), False)
            continue
        here = (2, block.start, block.size)
        mask = plan.mask(block, window, query.dtype, query.device) if isinstance(block, Bush) else None
        attend(query.narrow(*here), key.narrow(*here), value.narrow(*here), mask, mask is None)
    if not parts:
        return query.new_zeros(1, 0, query.shape[1], value.shape[-1])
    return torch.cat(parts, dim=2).transpose(1, 2)
