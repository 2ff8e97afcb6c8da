"""Fitting trees into a length limit without losing a prompt's end or teaching a stop where text was cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from truing.core.trees import Completion, IntArray, Tree


@dataclass(frozen=True, slots=True)
class Cuts:
    """What a length limit took away."""

    prompts: int = 0
    """Rows whose prompt was cut."""
    completions: int = 0
    """Rows with a completion that was cut."""
    tokens: int = 0

    def __add__(self, other: Cuts) -> Cuts:
        return Cuts(self.prompts + other.prompts, self.completions + other.completions, self.tokens + other.tokens)


def longest(tree: Tree) -> int:
    """Tokens of the prompt and its longest completion."""
    return len(tree.prompt) + max((len(c.tokens) for c in tree.completions), default=0)


def truncate(tree: Tree, limit: int, bos: int | None) -> tuple[Tree, Cuts]:
    """Cut a tree so that its prompt with any one completion has at most `limit` tokens.

    The prompt gives way first, from its start (behind a BOS), down to half of the limit: its end says whose turn it is.
    Completions are cut from their end and then have no end token, for the text does not end there. Tokens behind the
    last supervised one are left out of a completion that was cut; nothing is learned from them.
    """
    if longest(tree) <= limit:
        return tree, Cuts()
    room = max((len(c.tokens) for c in tree.completions), default=0)
    prompt = _keep_end(tree.prompt, max(limit - room, limit // 2), bos)
    completions = tuple(_keep_start(c, limit - len(prompt)) for c in tree.completions)
    cut = Tree(prompt, completions, tree.pairs, tree.margins, tree.origin)
    shorter = any(len(a.tokens) < len(b.tokens) for a, b in zip(completions, tree.completions, strict=True))
    return cut, Cuts(int(len(prompt) < len(tree.prompt)), int(shorter), tree.size - cut.size)


def _keep_end(prompt: IntArray, keep: int, bos: int | None) -> IntArray:
    if len(prompt) <= keep:
        return prompt
    if keep > 1 and prompt[0] == bos:
        return np.concatenate([prompt[:1], prompt[len(prompt) - keep + 1 :]])
    return prompt[len(prompt) - keep :]


def _keep_start(completion: Completion, keep: int) -> Completion:
    if len(completion.tokens) <= keep:
        return completion
    supervised = np.flatnonzero(completion.mask[:keep])
    stop = int(supervised[-1]) + 1 if len(supervised) else keep
    return Completion(completion.tokens[:stop], completion.mask[:stop], completion.label)
