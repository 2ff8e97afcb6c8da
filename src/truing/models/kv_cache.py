"""Keys and values of prompts and of what is being written behind them, and attention of one new token a row.

A prompt's keys are kept once however many rows continue it. The rows of a wave all write their t-th token at the same
time, so their own keys need neither padding nor a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truing.core.batch import Layout, Span
from truing.models.tree_plan import TreePlan


class Prefill(TreePlan):
    """A plan of prompts alone whose keys and values are kept, layer by layer."""

    def __init__(self, layout: Layout, rows: Sequence[int], length: int, device: torch.device) -> None:
        super().__init__(layout)
        self._prompts = [tree.prompt for tree in layout.trees]
        self.cache = Cache([span.size for span in self._prompts], rows, length, device)

    def keep(self, key: Tensor, value: Tensor) -> None:
        """Take over what a layer computed for all prompts: float [1, Hkv, T, D] each."""
        self.cache.layers.append(
            _Layer(
                _padded(key[0], self._prompts),
                _padded(value[0], self._prompts),
                self.cache.own(key),
                self.cache.own(value),
            )
        )


@dataclass(slots=True, eq=False)
class _Layer:
    """What one layer attends to."""

    prompt_key: Tensor  # float [G, Hkv, P, D]
    prompt_value: Tensor  # float [G, Hkv, P, Dv]
    own_key: Tensor  # float [R, Hkv, S, D], of which the first t + 1 count
    own_value: Tensor  # float [R, Hkv, S, Dv]


class Cache:
    """G prompts, R rows that continue them, and S places a row to write in.

    Layers are told apart by the order in which a forward pass calls them.
    """

    def __init__(self, sizes: Sequence[int], rows: Sequence[int], length: int, device: torch.device) -> None:
        self.layers: list[_Layer] = []
        self._length, self._device = length, device
        self._sizes = torch.tensor(list(sizes))  # int64 [G]
        self._group = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(list(rows)))  # int64 [R]
        self._written = 0
        self._layer = 0
        self._masks: dict[int | None, Tensor | None] = {}
        self._place()

    @property
    def positions(self) -> Tensor:
        """Where each row's next token stands in its sequence: int64 [R]."""
        return (self._sizes[self._group] + self._written - 1).to(self._device)

    def own(self, like: Tensor) -> Tensor:
        """Room for what the rows will write: float [R, Hkv, S, D]."""
        return like.new_empty(len(self._group), like.shape[1], self._length, like.shape[3])

    def advance(self) -> None:
        """Begin the next token."""
        self._written += 1
        self._layer = 0
        self._masks.clear()

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows, int64 [R'] ascending; prompts that nobody continues are let go of."""
        groups, group = torch.unique(self._group[rows.cpu()], return_inverse=True)
        fewer = len(groups) < len(self._sizes)
        self._sizes, self._group = self._sizes[groups], group
        for layer in self.layers:
            layer.own_key, layer.own_value = (
                self._kept(x, rows, self._written) for x in (layer.own_key, layer.own_value)
            )
            if fewer:
                where = groups.to(self._device)
                layer.prompt_key, layer.prompt_value = layer.prompt_key[where], layer.prompt_value[where]
        self._place()

    @staticmethod
    def _kept(x: Tensor, rows: Tensor, written: int) -> Tensor:
        fewer = x.new_empty(len(rows), *x.shape[1:])
        fewer[:, :, :written] = x[rows, :, :written]
        return fewer

    def _place(self) -> None:
        """Lay the rows out in a grid of prompts by rows, so that each prompt's keys are read once for all its rows."""
        counts = torch.bincount(self._group, minlength=len(self._sizes))
        self._wide = int(counts.max()) if len(counts) else 0
        first = counts.cumsum(0) - counts
        slots = self._group * self._wide + torch.arange(len(self._group)) - first[self._group]
        self._full = bool((counts == self._wide).all())
        self._slots = slots.to(self._device)

    def attend(
        self,
        query: Tensor,  # float [1, H, R, D]
        key: Tensor,  # float [1, Hkv, R, D]
        value: Tensor,  # float [1, Hkv, R, Dv]
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,  # float [H]
    ) -> Tensor:
        """Attend from each row's new token to its prompt and to what it has written: float [1, R, H, Dv]."""
        layer = self.layers[self._layer]
        self._layer += 1
        new, end = self._written - 1, self._written
        _, heads, rows, _ = query.shape
        shared = key.shape[1]
        layer.own_key[:, :, new] = key[0].transpose(0, 1)
        layer.own_value[:, :, new] = value[0].transpose(0, 1)
        asked = query[0].transpose(0, 1).reshape(rows, shared, heads // shared, -1)
        own_key, own_value = layer.own_key[:, :, :end], layer.own_value[:, :, :end]
        of_prompt = self._rows(self._grid(asked) @ layer.prompt_key.transpose(-1, -2))
        of_own = asked @ own_key.transpose(-1, -2)
        split = of_prompt.shape[-1]
        scores = torch.cat([of_prompt, of_own], dim=-1).float().mul_(scale)  # float32 [R, Hkv, H/Hkv, P + t]
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        hidden = self._hidden(split, window)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        if sinks is not None:
            column = sinks.float().reshape(1, shared, -1, 1).expand(rows, -1, -1, 1)
            weights = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
        else:
            weights = torch.softmax(scores, dim=-1)
        weights = weights.to(value.dtype)
        out = weights[..., split:] @ own_value
        out = out + self._rows(self._grid(weights[..., :split]) @ layer.prompt_value)
        return out.reshape(1, rows, heads, -1)

    def _grid(self, x: Tensor) -> Tensor:
        """Rows under their prompts: [R, Hkv, g, n] → [G, Hkv, wide·g, n]."""
        if self._wide == 1:
            return x
        if not self._full:
            x = x.new_zeros(len(self._sizes) * self._wide, *x.shape[1:]).index_copy_(0, self._slots, x)
        grid = x.reshape(len(self._sizes), self._wide, *x.shape[1:]).transpose(1, 2)
        return grid.reshape(len(self._sizes), grid.shape[1], -1, x.shape[-1])

    def _rows(self, x: Tensor) -> Tensor:
        """Back again: [G, Hkv, wide·g, n] → [R, Hkv, g, n]."""
        if self._wide == 1:
            return x
        groups, shared, _, last = x.shape
        rows = x.reshape(groups, shared, self._wide, x.shape[2] // self._wide, last).transpose(1, 2)
        rows = rows.reshape(groups * self._wide, shared, -1, last)
        return rows if self._full else rows[self._slots]

    def _hidden(self, split: int, window: int | None) -> Tensor | None:
        """What a row does not see: bool [R, 1, 1, P + t]; None where it sees all."""
        if window not in self._masks:
            self._masks[window] = self._computed_mask(split, window)
        return self._masks[window]

    def _computed_mask(self, split: int, window: int | None) -> Tensor | None:
        sizes = self._sizes[self._group]  # int64 [R]
        place = torch.arange(split + self._written)
        ragged = bool((self._sizes < split).any())
        longest = int(self._sizes.max()) + self._written
        if not ragged and (window is None or window >= longest):
            return None
        padding = (place >= sizes[:, None]) & (place < split)
        position = torch.where(place < split, place, place - split + sizes[:, None])
        hidden = padding
        if window is not None:
            hidden = padding | (position <= sizes[:, None] + self._written - 1 - window)
        return hidden[:, None, None].to(self._device)


def _padded(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """Lay the parts of a token axis side by side, zeros behind the shorter ones: [Hkv, T, D] → [G, Hkv, P, D]."""
    longest = max(span.size for span in spans)
    out = x.new_zeros(len(spans), x.shape[0], longest, x.shape[2])
    for row, span in enumerate(spans):
        out[row, :, : span.size] = x[:, span.start : span.stop]
    return out
