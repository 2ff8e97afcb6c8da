"""How a layout of trees is cut into attention calls.

Chain   one causal sequence (a prompt alone, or with its only completion)
Bush    a tree under a mask: one so small that a masked call costs less than several, or one that a sliding window
        cuts
Fork    a prompt with several completions: all of them read the prompt's keys in one call, then each reads itself,
        and the two are merged by their log-sum-exps

Where results can be merged so, on a CPU, a long causal sequence is cut too: its second half reads the first half's
keys in one call, because the kernel computes what causality hides. `parts` are the calls that come of it.

A GPU takes the whole layout in one call: `segments` for a kernel that reads sequences of unequal length, `places` for
one that masks token by token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from truing.core.batch import Layout, TreeSpans

PAIRS_PER_CALL = 1000
"""Query–key pairs that cost as much as one more kernel call, for about six heads of 64 on a CPU."""


WHOLE = 192
"""Tokens up to which a causal sequence is one call. The CPU kernel skips hidden keys only in blocks of 512."""


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


@dataclass(frozen=True, slots=True)
class Part:
    """One kernel call. Those with a causal order or a mask attend to themselves and come before what adds to them."""

    rows: tuple[int, int]
    """(start, size) of the queries."""
    columns: tuple[int, int]
    """(start, size) of the keys: the queries' own, or others that all of them see."""
    bush: Bush | None = None
    """What masks the keys; None: causal among a call's own keys, everything among others."""

    @property
    def own(self) -> bool:
        """Whether queries and keys are the same tokens."""
        return self.rows == self.columns


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """A layout as S causal sequences: queries are the end of their own keys, and all queries in order are the T tokens.

    A prompt and its first completion are one sequence; every further completion reads the prompt's keys once more.
    """

    query_ends: Tensor  # int32 [S + 1], where each segment's queries begin; the last number is T
    key_ends: Tensor  # int32 [S + 1], the same for keys
    longest_query: int
    longest_key: int
    gather: Tensor | None  # int64, which token each key is; None where keys are the T tokens as they lie


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where each token stands in its tree: int32 [T] each."""

    tree: Tensor
    branch: Tensor  # the number of its completion, counted over the layout; −1 in a prompt
    position: Tensor


class TreePlan:
    """How a layout is cut into kernel calls: made once for a forward pass and shared by all layers.

    It also notes the sliding windows that layers asked for, so that the self-check can tell a model whose window is
    handled from one that keeps it to itself, and the kernels that layers were refused, with the reason.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.windows: set[int] = set()
        self.refused: set[str] = set()
        self.block_masks: dict[int | None, Any] = {}
        """FlexAttention's form of who sees whom, by sliding window."""
        self._segments: Segments | None = None
        self._places: Places | None = None
        self._blocks: dict[int | None, tuple[Block, ...]] = {}
        self._parts: dict[int | None, tuple[Part, ...]] = {}
        self._masks: dict[tuple[int, int, int | None, torch.dtype, torch.device], Tensor] = {}
        self._longest = max((longest_path(tree) for tree in layout.trees), default=0)

    def cutting(self, window: int | None) -> int | None:
        """Return the window if it hides any key, else None."""
        return None if window is None or window >= self._longest else window

    def segments(self, device: torch.device) -> Segments:
        """Return the layout as causal sequences."""
        if self._segments is None:
            self._segments = _segments(self.layout, device)
        return self._segments

    def places(self, device: torch.device) -> Places:
        """Return where the tokens stand."""
        if self._places is None:
            self._places = _places(self.layout, device)
        return self._places

    def blocks(self, window: int | None) -> tuple[Block, ...]:
        """Return the blocks for layers with this sliding window (None: without)."""
        window = self.cutting(window)
        if window not in self._blocks:
            self._blocks[window] = tuple(_block(tree, window) for tree in self.layout.trees)
        return self._blocks[window]

    def parts(self, window: int | None) -> tuple[Part, ...]:
        """Return the calls that, merged by their log-sum-exps, are the blocks."""
        if window not in self._parts:
            self._parts[window] = tuple(part for block in self.blocks(window) for part in _parts(block))
        return self._parts[window]

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


def _parts(block: Block) -> Iterator[Part]:
    match block:
        case Bush(start, size):
            yield Part((start, size), (start, size), block)
        case Chain(start, size):
            yield from _causal(start, size)
        case Fork(start, prompt, size, completions):
            yield from _causal(start, prompt)
            for span in completions:
                yield from _causal(*span)
            yield Part((start + prompt, size), (start, prompt))


def _causal(start: int, size: int) -> Iterator[Part]:
    if size <= WHOLE:
        yield Part((start, size), (start, size))
        return
    half = size // 2
    yield from _causal(start, half)
    yield from _causal(start + half, size - half)
    yield Part((start + half, size - half), (start, half))


def _segments(layout: Layout, device: torch.device) -> Segments:
    queries: list[int] = []
    keys: list[list[range]] = []
    for tree in layout.trees:
        first = tree.completions[0].stop if tree.completions else tree.prompt.stop
        prompt = range(tree.start, tree.prompt.stop)
        queries.append(first - tree.start)
        keys.append([range(tree.start, first)])
        for span in tree.completions[1:]:
            queries.append(span.size)
            keys.append([prompt, range(*span)])
    kept = [number for number, size in enumerate(queries) if size]
    queries = [queries[number] for number in kept]
    sizes = [sum(map(len, keys[number])) for number in kept]
    gather = None
    if sum(sizes) > layout.size:
        pieces = [torch.arange(piece.start, piece.stop) for number in kept for piece in keys[number]]
        gather = torch.cat(pieces).to(device, non_blocking=True)
    return Segments(
        _ends(queries, device), _ends(sizes, device), max(queries, default=0), max(sizes, default=0), gather
    )


def _ends(sizes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32).to(device, non_blocking=True)


def _places(layout: Layout, device: torch.device) -> Places:
    places = torch.full((3, layout.size), -1, dtype=torch.int32)
    branches = 0
    for number, tree in enumerate(layout.trees):
        places[0, tree.start : tree.stop] = number
        places[2, tree.start : tree.prompt.stop] = torch.arange(tree.prompt.size)
        for span in tree.completions:
            places[1, span.start : span.stop] = branches
            places[2, span.start : span.stop] = torch.arange(span.size) + tree.prompt.size
            branches += 1
    return Places(*places.to(device, non_blocking=True))
