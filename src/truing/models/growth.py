"""Attention when many prefixes grow the same small tree: each node sees its row's prefix and its own ancestors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Keys and values of R prefixes, padded at their end to the longest."""

    layers: list[tuple[Tensor, Tensor]]  # float [R, Hkv, L, D] and [R, Hkv, L, Dv]; empty before the first pass
    sizes: Tensor  # int64 [R]

    @classmethod
    def nothing(cls, rows: int, device: torch.device) -> Kept:
        """Prefixes without a token."""
        return cls([], torch.zeros(rows, dtype=torch.int64, device=device))

    def some(self, rows: Tensor) -> Kept:
        """Those of some rows."""
        return Kept([(key[rows], value[rows]) for key, value in self.layers], self.sizes[rows])


class Growth:
    """One pass of R prefixes through a tree of n nodes; it keeps the keys and values that it computes.

    Layers are told apart by the order in which a forward pass calls them.
    """

    def __init__(self, paths: Sequence[Sequence[int]], prefixes: Kept) -> None:
        device = prefixes.sizes.device
        self._prefixes = prefixes
        self._own: list[tuple[Tensor, Tensor]] = []
        self._depths = torch.tensor([len(path) for path in paths], device=device)  # int64 [n]
        seen = torch.zeros(len(paths), len(paths), dtype=torch.bool)
        for node, path in enumerate(paths):
            seen[node, list(path)] = True
        self._seen = seen.to(device)  # bool [n, n]: a node sees its ancestors and itself
        self._masks: dict[int | None, Tensor] = {}

    @property
    def positions(self) -> Tensor:
        """Where each node stands in its sequence: int64 [R, n]."""
        return self._prefixes.sizes[:, None] + self._depths - 1

    def attend(
        self,
        query: Tensor,  # float [R, H, n, D]
        key: Tensor,  # float [R, Hkv, n, D]
        value: Tensor,  # float [R, Hkv, n, Dv]
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,  # float [H]
    ) -> Tensor:
        """Attend from each node to its prefix, its ancestors and itself: float [R, n, H, Dv]."""
        layer = len(self._own)
        self._own.append((key, value))
        if self._prefixes.layers:
            before = self._prefixes.layers[layer]
            key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        mask = self._mask(key.shape[2], window)
        if softcap is None and sinks is None:
            grouped = query.shape[1] != key.shape[1]
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
            return out.transpose(1, 2)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = (query @ key.transpose(-1, -2)).float() * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~mask, float("-inf"))
        if sinks is not None:
            column = sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, column], dim=-1)
        weights = torch.softmax(scores, dim=-1)[..., : key.shape[2]]
        return (weights.to(value.dtype) @ value).transpose(1, 2)

    def keep(self, rows: Tensor, paths: Sequence[Sequence[int]]) -> Kept:
        """Keys and values of new prefixes: those of `rows`, int64 [R'], each followed by its path of nodes."""
        device = self._prefixes.sizes.device
        rows = rows.to(device)
        before, added = self._prefixes.sizes[rows], torch.tensor([len(path) for path in paths], device=device)
        sizes = before + added
        place = torch.arange(int(sizes.max()) if len(sizes) else 0, device=device)
        longest = max((len(path) for path in paths), default=0)
        path = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths], device=device)  # int64 [R', B]
        old = place < before[:, None]  # bool [R', L']
        step = (place - before[:, None]).clamp(0, max(longest - 1, 0))
        node = path.gather(1, step)  # int64 [R', L']
        layers = []
        for number, own in enumerate(self._own):
            parts = []
            for which, new in enumerate(own):
                grown = new[rows[:, None], :, node].transpose(1, 2)  # [R', Hkv, L', D]
                if self._prefixes.layers:
                    prefix = self._prefixes.layers[number][which][rows]
                    width = min(prefix.shape[2], len(place))
                    kept = old[:, None, :width, None]
                    grown[:, :, :width] = torch.where(kept, prefix[:, :, :width], grown[:, :, :width])
                parts.append(grown)
            layers.append((parts[0], parts[1]))
        return Kept(layers, sizes)

    def _mask(self, width: int, window: int | None) -> Tensor:
        """Who sees whom, prefixes first: bool [R, 1, n, L + n], or one for all rows where they are as long."""
        if window not in self._masks:
            self._masks[window] = self._computed_mask(width - len(self._depths), window)
        return self._masks[window]

    def _computed_mask(self, split: int, window: int | None) -> Tensor:
        sizes = self._prefixes.sizes
        if window is None and bool((sizes == split).all()):
            return torch.cat([self._seen.new_ones(len(self._depths), split), self._seen], dim=1)
        place = torch.arange(split, device=sizes.device)
        of_prefix = (place < sizes[:, None])[:, None].expand(-1, len(self._depths), -1)  # bool [R, n, L]
        of_own = self._seen.expand(len(sizes), -1, -1)
        if window is not None:
            here = self.positions  # int64 [R, n]
            of_prefix = of_prefix & (place > here[..., None] - window)
            of_own = of_own & (here[:, None] > here[..., None] - window)
        return torch.cat([of_prefix, of_own], dim=-1)[:, None]
