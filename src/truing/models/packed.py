"""Copies of weights that lie as oneDNN reads them, for products of few rows, over and over with the same weights."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 32
"""Rows that a copy is laid out for; it serves any number."""


@torch.no_grad()
def packed(weight: Tensor, least: int) -> Tensor | None:
    """Copy a weight [out, in]; None where it cannot be copied so, or has fewer than `least` elements.

    A CPU multiplies 32 rows 1.2 to 2 times as fast by the copy, and up to three times by a whole vocabulary. What a
    call costs beside the product makes it slower for small weights.
    """
    if weight.device.type != "cpu" or weight.numel() < least:
        return None
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    fast = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS) if fast else None


def product(x: Tensor, copy: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply rows [..., in] by a packed weight: [..., out]."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", [], "")
    return out
