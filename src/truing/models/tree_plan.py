"""How a layout of trees is cut into attention calls.

Chain   one causal sequence (a prompt alone, or with its only completion)
Bush    a tree under a mask: one so small that a masked call costs less than several, or one that a sliding window
        cuts
Fork    a prompt with several completions: all of them read the prompt's keys in one call, then each reads itself,
        and the two are merged by their log-sum-exps
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from truing.core.batch import Layout, TreeSpans

PAIRS_PER_CALL = 1000
"""Query–key pairs that cost as much as one more kernel call, for about six heads of 64 on a CPU."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One causal sequence."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Bush:
    """One tree under a mask."""

    start: int
    size: int
    tree: TreeSpans


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
            self._blocks[window] = tuple(_block(tree, window) for tree in self.layout.trees)
        return self._blocks[window]

    def mask(self, bush: Bush, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return what is added to the scores of a bush: dtype [size, size], 0 where seen and −∞ where not."""
        key = (bush.start, bush.size, window, dtype, device)
        if key not in self._masks:
            seen = visible(bush.tree, window).to(device)
            hidden = torch.full(seen.shape, float("-inf"), dtype=dtype, device=device)
            self._masks[key] = hidden.masked_fill_(seen, 0.0)
        return self._masks[key]


def longest_path(tree: TreeSpans) -> int:
    """Tokens of the prompt and its longest completion."""
    return tree.prompt.size + max((span.size for span in tree.completions), default=0)


def visible(tree: TreeSpans, window: int | None) -> Tensor:
    """Which query (row) sees which key (column) within a tree: bool [t, t].

    A window counts positions, not places on the token axis: a key is seen while query − key position < window.
    """
    size = tree.stop - tree.start
    seen = torch.zeros(size, size, dtype=torch.bool)
    positions = torch.zeros(size, dtype=torch.int64)
    prompt = slice(0, tree.prompt.size)
    seen[prompt, prompt] = True
    positions[prompt] = torch.arange(tree.prompt.size)
    for span in tree.completions:
        own = slice(span.start - tree.start, span.stop - tree.start)
        seen[own, prompt] = True
        seen[own, own] = True
        positions[own] = torch.arange(span.size) + tree.prompt.size
    distance = positions[:, None] - positions[None, :]
    seen &= distance >= 0
    if window is not None:
        seen &= distance < window
    return seen


def _block(tree: TreeSpans, window: int | None) -> Block:
    size = tree.stop - tree.start
    if window is not None and longest_path(tree) > window:
        return Bush(tree.start, size, tree)
    if len(tree.completions) < 2:
        return Chain(tree.start, size)
    sizes = [span.size for span in tree.completions]
    needed = tree.prompt.size**2 + tree.prompt.size * sum(sizes) + sum(n * n for n in sizes)
    if size * size - needed <= PAIRS_PER_CALL * (1 + len(sizes)):
        return Bush(tree.start, size, tree)
    return Fork(tree.start, tree.prompt.size, sum(sizes), tuple((span.start, span.size) for span in tree.completions))
