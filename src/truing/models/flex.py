"""Attention over trees with soft-capped scores in one compiled kernel (FlexAttention, on CUDA)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from truing.models.tree_plan import Places, TreePlan


def flex_trees(
    query: Tensor,  # float [1, H, T, D]
    key: Tensor,  # float [1, Hkv, T, D]
    value: Tensor,  # float [1, Hkv, T, Dv]
    plan: TreePlan,
    scale: float,
    window: int | None,
    softcap: float,
) -> Tensor:
    """Attend with scores capped to c·tanh(score / c), over the whole layout: float [1, T, H, Dv]."""
    if query.shape[2] == 0:
        return query.new_zeros(1, 0, query.shape[1], value.shape[-1])
    attend, _ = compiled()
    out: Tensor = attend(
        query,
        key,
        value,
        score_mod=_capped(softcap),
        block_mask=_block_mask(plan, plan.cutting(window), query.device),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


@cache
def compiled() -> tuple[Any, Any]:
    """FlexAttention, and what makes its masks: compiled, since otherwise both write all T² numbers to memory.

    The second length that they meet makes them compile once more, for any. To ask for that at once would make a
    variable of the cap too, which the kernel cannot take.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention), torch.compile(create_block_mask)


def _block_mask(plan: TreePlan, window: int | None, device: torch.device) -> Any:
    if window not in plan.block_masks:
        places = plan.places(device)
        size = plan.layout.size
        _, make = compiled()
        seen = _seen(places, window)
        plan.block_masks[window] = make(seen, None, None, size, size, device=device)
    return plan.block_masks[window]


def _seen(places: Places, window: int | None) -> Any:
    tree, branch, position = places.tree, places.branch, places.position
    # As a tensor: a number would be compiled in, and another window compiled anew.
    hidden = torch.full_like(position, -1) if window is None else position - window

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        path = (tree[query] == tree[key]) & ((branch[key] < 0) | (branch[query] == branch[key]))
        return path & (position[key] <= position[query]) & (position[key] > hidden[query])

    return seen


@cache
def _capped(softcap: float) -> Any:
    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped
