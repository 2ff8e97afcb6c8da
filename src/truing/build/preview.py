"""Shows a batch as it will be trained: decoded from the very tokens, trained and masked ones told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truing.core.text import harmless
from truing.core.trees import Tree
from truing.data.decoded import decoded
from truing.training.progress import Reporter

if TYPE_CHECKING:
    from truing.build.stage import Assembled


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
    row = decoded(tree, ready.built.loaded.tokenizer.decode, most)
    reporter.say(f"  {row.title}")
    for name, parts in row.lines:
        reporter.show(name, [(harmless(text), trained) for text, trained in parts])
