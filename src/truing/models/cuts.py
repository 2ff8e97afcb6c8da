"""Tensors that are cut over ranks, and whole ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Put tensors that are cut over ranks together again, one after the other, on the CPU of the ranks that keep them.

    Tensors that are one stay one.
    """
    seen: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in seen:
            full = whole_tensor(tensor.detach())
            seen[id(tensor)] = full.cpu() if keep else full.new_empty(0)
        found[name] = seen[id(tensor)]
    return found if keep else {}


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor put together on every rank, where it is cut over them."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """The part of this rank of a whole tensor, cut as another one is; no rank is asked."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
