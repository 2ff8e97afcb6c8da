"""Random trees and outputs for testing losses without a model."""

from __future__ import annotations

import numpy as np
import torch

from truing.core.batch import Batch, Outputs, collate
from truing.core.trees import Completion, Tree


def random_tree(rng: np.random.Generator, *, completions: int = 2, longest: int = 9) -> Tree:
    """A tree with pairs (0,1) when it has two completions; some tokens are unsupervised, never all."""
    parts = []
    for index in range(completions):
        size = int(rng.integers(1, longest + 1))
        mask = rng.random(size) < 0.8
        mask[-1] = True
        parts.append(Completion(rng.integers(0, 50, size, dtype=np.int32), mask, label=bool(index % 2)))
    prompt = rng.integers(0, 50, int(rng.integers(1, 6)), dtype=np.int32)
    return Tree(prompt, tuple(parts), pairs=((0, 1),) if completions == 2 else ())


def random_columns(batch: Batch, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of policy and reference, float32 [K], the first a leaf that wants a gradient."""
    policy = torch.tensor(-rng.gamma(1.0, 1.0, batch.num_targets) - 0.01, dtype=torch.float32, requires_grad=True)
    reference = torch.tensor(-rng.gamma(1.0, 1.0, batch.num_targets) - 0.01, dtype=torch.float32)
    return policy, reference


def whole_and_parts(seed: int, *, trees: int = 6, completions: int = 2) -> tuple[Batch, list[Batch]]:
    """One batch, and the same trees cut into three micro-batches, all with `ref_logprobs`."""
    rng = np.random.default_rng(seed)
    all_trees = [random_tree(rng, completions=completions) for _ in range(trees)]
    cuts = [all_trees[:1], all_trees[1:4], all_trees[4:]]
    return collate(all_trees), [collate(part) for part in cuts]


def outputs(logprobs: torch.Tensor) -> Outputs:
    return Outputs(logprobs=logprobs)
