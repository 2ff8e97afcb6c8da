"""A rollout in progress, and how a checkpoint keeps it: tokens and columns as tensors, sizes as plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing.core.batch import Batch
from truing.core.trees import Completion, IntArray, Tree

PREFIX = "rollout."
"""What the tensors of a rollout in progress are called in a checkpoint."""


@dataclass(slots=True, eq=False)
class Rollout:
    """Completions, cut into steps."""

    mini_batches: list[list[list[Tree]]]
    """Trees of each micro-batch of each mini-batch."""
    batches: list[list[Batch]]
    metrics: dict[str, float]
    silent: bool
    done: int = 0
    """Steps made of it."""


def as_tensors(rollout: Rollout) -> tuple[dict[str, Tensor], list[list[list[list[int]]]]]:
    """A rollout's tokens and columns as tensors, and its trees' sizes: prompt, then each completion."""
    tensors: dict[str, Tensor] = {}
    shape = []
    pieces: list[np.ndarray] = []
    pairs: list[tuple[int, int]] = []
    for m, mini in enumerate(rollout.mini_batches):
        shape.append([[[len(t.prompt), *(len(c.tokens) for c in t.completions)] for t in micro] for micro in mini])
        for b, micro in enumerate(mini):
            pieces += [part for t in micro for part in (t.prompt, *(c.tokens for c in t.completions))]
            pairs += [pair for t in micro for pair in t.pairs]
            for name, column in rollout.batches[m][b].columns.items():
                tensors[f"{PREFIX}column.{m}.{b}.{name}"] = column.clone()  # columns may share memory, files not
    tensors[f"{PREFIX}tokens"] = torch.from_numpy(np.concatenate(pieces).astype(np.int32))
    tensors[f"{PREFIX}pairs"] = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return tensors, shape


def from_tensors(
    tensors: Mapping[str, Tensor], saved: Mapping[str, Any], collate: Callable[[Sequence[Tree]], Batch]
) -> Rollout:
    """Take back what `as_tensors` made; `saved` has the sizes under `shape`, and the rollout's other values."""
    tokens = tensors[f"{PREFIX}tokens"].cpu().numpy()
    pairs = [(int(a), int(b)) for a, b in tensors[f"{PREFIX}pairs"].tolist()]
    start = 0

    def take(size: int) -> IntArray:
        nonlocal start
        start += size
        piece: IntArray = tokens[start - size : start].astype(np.int32)
        return piece

    def tree(sizes: Sequence[int]) -> Tree:
        prompt = take(sizes[0])
        completions = tuple(Completion(take(size), np.ones(size, dtype=np.bool_)) for size in sizes[1:])
        return Tree(prompt, completions, (pairs.pop(0),) if pairs else ())

    trees = [[[tree(sizes) for sizes in micro] for micro in mini] for mini in saved["shape"]]
    batches: list[list[Batch]] = []
    for m, mini in enumerate(trees):
        batches.append([])
        for b, micro in enumerate(mini):
            prefix = f"{PREFIX}column.{m}.{b}."
            batch = collate(micro)
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            batches[-1].append(batch.with_columns(**{k: v.to(batch.tokens.device) for k, v in own.items()}))
    return Rollout(trees, batches, dict(saved["metrics"]), saved["silent"], saved["done"])
