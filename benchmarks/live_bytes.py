"""Counts the bytes of all tensors that are alive, operation by operation, real ones and fake ones alike."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts each storage from the operation that makes it until nothing refers to it any more."""

    def __init__(self, uncounted: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage | Tensor, int] = weakref.WeakKeyDictionary()
        for tensor in uncounted:
            self._known[tensor.untyped_storage()] = 0

    def _take(self, tensor: Tensor) -> None:
        storage: torch.UntypedStorage | Tensor = tensor  # a copy laid out for oneDNN shows none
        size = tensor.numel() * tensor.element_size()
        if not tensor.is_mkldnn:
            storage = tensor.untyped_storage()
            size = storage.nbytes()
        if storage in self._known:
            return
        self._known[storage] = size
        self.now += size
        weakref.finalize(storage, self._give_back, size)

    def _give_back(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._take(value)
        self.peak = max(self.peak, self.now)
        return out
