"""How a layout of trees is cut into attention calls.

Chain   one causal sequence (a prompt alone, or with its only completion)
Bush    a few small trees under one mask (a masked call costs less than many tiny ones), or a tree that a sliding
        window cuts
Fork    a prompt with several completions: all of them read the prompt's keys in one call, then each reads itself,
        and the two are merged by their log-sum-exps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truing.core.batch import Layout, TreeSpans

SMALL = 64
"""Tokens up to which neighbouring trees share one masked call; a tree of 20 + 10 + 10 would take 4 otherwise."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One causal sequence."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Bush:
    """Trees that share one masked call."""

    start: int
    size: int
    trees: tuple[TreeSpans, ...]


@dataclass(frozen=True, slots=True)
class Fork:
    """A prompt with two or more completions."""

    start: int
    prompt: int
    """Tokens of the prompt."""
    size: int
    """Tokens of all completions; they follow the prompt."""
    completions: tuple[tuple[int, int], ...]
    """(start, size) of each."""


Block = Chain | Bush | Fork


class TreePlan:
    """How a layout is cut into kernel calls: made once for a forward pass and shared by all layers.

    It also notes the sliding windows that layers asked for, so that the self-check can tell a model whose window is
    handled from one that keeps it to itself.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.windows: set[int] = set()
        self._blocks: dict[int | None, tuple[Block, ...]] = {}
        self._masks: dict[tuple[int, int, int | None, torch.dtype, torch.device], Tensor] = {}
        self._longest = max((longest_path(tree) for tree in layout.trees), default=0)

    def blocks(self, window: int | None) -> tuple[Block, ...]:
        """Return the blocks for layers with this sliding window (None: without)."""
        if window is not None and window >= self._longest:
            window = None
        if window not in self._blocks:
            self._blocks[window] = _cut(self.layout.trees, window)
        return self._blocks[window]

    def mask(self, bush: Bush, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return what is added to the scores of a bush: dtype [size, size], 0 where seen and −∞ where not."""
        key = (bush.start, bush.size, window, dtype, device)
        if key not in self._masks:
            seen = visible(bush.trees, bush.start, bush.size, window).to(device)
            hidden = torch.full(seen.shape, float("-inf"), dtype=dtype, device=device)
            self._masks[key] = hidden.masked_fill_(seen, 0.0)
        return self._masks[key]


def longest_path(tree: TreeSpans) -> int:
    """Tokens of the prompt and its longest completion."""
    return tree.prompt.size + max((span.size for span in tree.completions), default=0)


def visible(trees: Sequence[TreeSpans], start: int, size: int, window: int | None) -> Tensor:
    """Which query (row) sees which key (column) among `size` tokens from `start`: bool [size, size].

    A window counts positions, not places on the token axis: a key is seen while query − key position < window.
    """
    seen = torch.zeros(size, size, dtype=torch.bool)
    positions = torch.zeros(size, dtype=torch.int64)
    for tree in trees:
        prompt = slice(tree.prompt.start - start, tree.prompt.stop - start)
        seen[prompt, prompt] = True
        positions[prompt] = torch.arange(tree.prompt.size)
        for span in tree.completions:
            own = slice(span.start - start, span.stop - start)
            seen[own, prompt] = True
            seen[own, own] = True
            positions[own] = torch.arange(span.size) + tree.prompt.size
    distance = positions[:, None] - positions[None, :]
    seen &= distance >= 0
    if window is not None:
        seen &= distance < window
    return seen


def _cut(trees: Sequence[TreeSpans], window: int | None) -> tuple[Block, ...]:
    blocks: list[Block] = []
    small: list[TreeSpans] = []
    for tree in trees:
        cut_by_window = window is not None and longest_path(tree) > window
        if tree.stop - tree.start > SMALL or cut_by_window:
            blocks += _gather(small)
            small = []
            blocks.append(_block(tree, masked=cut_by_window))
            continue
        if small and tree.stop - small[0].start > SMALL:
            blocks += _gather(small)
            small = []
        small.append(tree)
    return tuple(blocks + _gather(small))


def _gather(small: list[TreeSpans]) -> list[Block]:
    if not small:
        return []
    if len(small) == 1 and len(small[0].completions) < 2:
        return [_block(small[0], masked=False)]
    start = small[0].start
    return [Bush(start, small[-1].stop - start, tuple(small))]


def _block(tree: TreeSpans, *, masked: bool) -> Block:
    size = tree.stop - tree.start
    if masked:
        return Bush(tree.start, size, (tree,))
    if len(tree.completions) < 2:
        return Chain(tree.start, size)
    spans = tuple((span.start, span.size) for span in tree.completions)
    return Fork(tree.start, tree.prompt.size, size - tree.prompt.size, spans)
