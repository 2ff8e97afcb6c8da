"""What torch's kernel for unequal lengths promises, computed plainly: a softmax for every segment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def varlen_attn(
    query: Tensor,  # float [Tq, H, D]
    key: Tensor,  # float [Tk, Hkv, D]
    value: Tensor,
    cu_seq_q: Tensor,  # int32 [S + 1]
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Attend within segments; the last query of each stands at its last key."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert int(cu_seq_q[-1]) == len(query)
    assert int(cu_seq_k[-1]) == len(key)
    assert int(cu_seq_q.diff().max()) == max_q
    assert int(cu_seq_k.diff().max()) == max_k
    assert enable_gqa or query.shape[1] == key.shape[1]
    groups = query.shape[1] // key.shape[1]
    left, right = window_size
    parts = []
    cut = (torch.split(x, e.diff().tolist()) for x, e in ((query, cu_seq_q), (key, cu_seq_k), (value, cu_seq_k)))
    for q, k, v in zip(*cut, strict=True):
        k, v = (x.double().repeat_interleave(groups, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q.double(), k) * (scale or q.shape[-1] ** -0.5)
        place = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))[None, :]
        hidden = torch.zeros_like(place, dtype=torch.bool)
        if right >= 0:
            hidden |= place < -right
        if left >= 0:
            hidden |= place > left
        parts.append(torch.einsum("hqk,khd->qhd", torch.softmax(scores.masked_fill(hidden, -torch.inf), -1), v))
    return torch.cat(parts).to(query.dtype)


def top_left(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, **extra: Any
) -> Tensor:
    """The same with the first query at the first key, as kernels once laid the causal order."""
    segments = zip(cu_seq_k[:-1].tolist(), cu_seq_q.diff().tolist(), strict=True)
    first = torch.cat([torch.arange(start, start + size) for start, size in segments])
    return varlen_attn(query, key[first], value[first], cu_seq_q, cu_seq_q, max_q, max_q, **extra)
