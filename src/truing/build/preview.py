"""Shows a batch as it will be trained: decoded from the very tokens, trained and masked ones told apart."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from truing.core.text import harmless
from truing.core.trees import Tree
from truing.training.progress import Reporter

if TYPE_CHECKING:
    from truing.build.stage import Assembled

Parts = list[tuple[str, bool]]


def show_batch(ready: Assembled, reporter: Reporter) -> None:
    """Show every row of the first micro-batch."""
    step = next(iter(ready.plan.steps()))
    rows = step.micro_batches[0]
    reporter.say(f"  first micro-batch: {len(rows)} of {step.rows} rows of step 1")
    for row in rows:
        show_tree(ready, ready.dataset.train[row], reporter, most=4000)


def show_first(ready: Assembled, reporter: Reporter) -> None:
    """Show the first row of the run, shortened: a wrong template is seen here, or never."""
    step = next(iter(ready.plan.steps()))
    show_tree(ready, ready.dataset.train[step.micro_batches[0][0]], reporter, most=240)


def show_tree(ready: Assembled, tree: Tree, reporter: Reporter, most: int) -> None:
    """Show one tree; `most` characters of each part."""
    reporter.say(f"  {tree.origin}: {tree.size} tokens, {tree.supervised} trained")
    decode = ready.built.loaded.tokenizer.decode
    reporter.show("prompt", [(_shorten(harmless(decode(tree.prompt.tolist())), most, keep_end=True), False)])
    for index, completion in enumerate(tree.completions):
        name = _name(tree, index)
        parts: Parts = []
        for trained, run in groupby(range(len(completion.tokens)), key=lambda i: bool(completion.mask[i])):
            ids = completion.tokens[np.fromiter(run, dtype=np.int64)].tolist()
            parts.append((_shorten(harmless(decode(ids)), most, keep_end=False), trained))
        reporter.show(name, parts)


def _name(tree: Tree, index: int) -> str:
    """What a completion is among those of its tree."""
    if tree.pairs:
        return "chosen" if index in {pair[0] for pair in tree.pairs} else "rejected"
    label = tree.completions[index].label
    if label is not None:
        return "desirable" if label else "undesirable"
    return "completion" if len(tree.completions) == 1 else "mismatched"


def _shorten(text: str, most: int, *, keep_end: bool) -> str:
    if len(text) <= most:
        return text
    if keep_end:
        return "… " + text[-most:]
    return f"{text[: most // 2]} … {text[-most // 2 :]}"
