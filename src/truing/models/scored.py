"""Attention over trees from explicit scores, which can do everything and costs the memory of the scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from truing.models.tree_plan import Bush, TreePlan


def scored_trees(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: TreePlan,
    scale: float,
    window: int | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with explicit scores, for what fused kernels lack; scores are recomputed in the backward pass."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    parts: list[Tensor] = []
    for tree in plan.layout.trees:
        here = (2, tree.start, tree.stop - tree.start)
        mask = plan.mask(Bush(here[1], here[2], tree), window, torch.float32, query.device)
        part = checkpoint(
            _scored,
            query.narrow(*here),
            key.narrow(*here),
            value.narrow(*here),
            mask,
            scale,
            dropout,
            softcap,
            sinks,
            use_reentrant=False,
            preserve_rng_state=dropout > 0,
        )
        assert isinstance(part, Tensor)
        parts.append(part)
    return torch.cat(parts, dim=2).transpose(1, 2) if parts else torch.zeros_like(query).transpose(1, 2)


def _scored(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    scores = (query @ key.transpose(-1, -2)).float() * scale  # float32 [1, H, t, t]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        column = sinks.float().reshape(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : key.shape[2]]
    return F.dropout(weights, dropout).to(value.dtype) @ value
