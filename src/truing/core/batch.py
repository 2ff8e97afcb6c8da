"""Trees packed end to end on one token axis, and what a model returns for them.

Axis names used everywhere: T tokens, K target (supervised) tokens, C completions, P pairs, N trees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from truing.core.errors import InputError
from truing.core.trees import Origin, Tree


class Span(NamedTuple):
    """The half-open range [start, stop) of a part on the token axis."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class TreeSpans(NamedTuple):
    """Where one prompt and the completions that see it lie; the completions follow the prompt without a gap."""

    prompt: Span
    completions: tuple[Span, ...]

    @property
    def start(self) -> int:
        return self.prompt.start

    @property
    def stop(self) -> int:
        return self.completions[-1].stop if self.completions else self.prompt.stop


@dataclass(frozen=True, slots=True)
class Layout:
    """Which token sees which: each completion its prompt and itself, each prompt itself, nothing across trees."""

    trees: tuple[TreeSpans, ...]
    size: int
    """T."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One micro-batch: what a model reads, where it is supervised, and columns that others filled in."""

    tokens: Tensor  # int64 [T]
    positions: Tensor  # int64 [T], a completion's continue its prompt's
    layout: Layout
    predictors: Tensor  # int64 [K], index into T of the token whose output predicts the target
    targets: Tensor  # int64 [K], token ids
    target_completion: Tensor  # int64 [K], ascending: which completion each target belongs to
    completion_tree: Tensor  # int64 [C]
    pairs: Tensor  # int64 [P, 2], (chosen, rejected) completions
    margins: Tensor  # float32 [P], zero where the data has none
    labels: Tensor  # int64 [C], 1 desirable, 0 undesirable, -1 unlabelled (such as another prompt's answer)
    target_counts: tuple[int, ...]  # C numbers: targets of each completion, known without a device round trip
    digests: tuple[str, ...]  # N tree digests
    origins: tuple[Origin | None, ...]  # N
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_targets(self) -> int:
        return int(self.targets.shape[0])

    @property
    def num_completions(self) -> int:
        return int(self.completion_tree.shape[0])

    @property
    def num_pairs(self) -> int:
        return int(self.pairs.shape[0])

    @property
    def ends(self) -> Tensor:
        """The last token of each completion, where a reward model reads its score: int64 [C], index into T."""
        ends = [span.stop - 1 for tree in self.layout.trees for span in tree.completions]
        return torch.tensor(ends, dtype=torch.int64, device=self.tokens.device)

    def column(self, name: str) -> Tensor:
        """Return a column that an annotator or a rollout filled; name it where it is missing."""
        if name not in self.columns:
            have = ", ".join(sorted(self.columns)) or "none"
            raise InputError(
                f"the batch has no column '{name}' (it has: {have}); declare it in the objective's `needs`"
            )
        return self.columns[name]

    def with_columns(self, **columns: Tensor) -> Batch:
        """Return the same batch with more columns."""
        return replace(self, columns={**self.columns, **columns})

    def pinned(self) -> Batch:
        """Return the batch in memory that a GPU can fetch by itself, so that `to` does not wait."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS})

    def to(self, device: torch.device) -> Batch:
        """Return the batch with every tensor on `device`."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return replace(self, **moved, columns={k: v.to(device, non_blocking=True) for k, v in self.columns.items()})


_TENSORS = (
    "tokens",
    "positions",
    "predictors",
    "targets",
    "target_completion",
    "completion_tree",
    "pairs",
    "margins",
    "labels",
)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over a whole optimizer step, all micro-batches and ranks: the only denominators an objective may use."""

    tokens: int
    """Supervised tokens."""
    completions: int
    pairs: int
    labelled: int = 0
    """Completions that are judged desirable or undesirable."""

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Totals:
        """Count the batches that make up a step."""
        tokens = completions = pairs = labelled = 0
        for batch in batches:
            tokens += batch.num_targets
            completions += batch.num_completions
            pairs += batch.num_pairs
            labelled += int((batch.labels >= 0).sum())
        return cls(tokens, completions, pairs, labelled)


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What a role computed for a batch."""

    logprobs: Tensor  # float32 [K], log π(target | prompt, completion so far); empty for a model that only scores
    entropy: Tensor | None = None  # float32 [K], of the whole next-token distribution, in nats
    log_squares: Tensor | None = None  # float32 [K], log Σ p² over the vocabulary, without gradient
    scores: Tensor | None = None  # float32 [C], a reward model's score of each completion
    values: Tensor | None = None  # float32 [K], what a critic expects from before each target token on


def collate(trees: Sequence[Tree], *, share_prompts: bool = True) -> Batch:
    """Lay trees end to end. Without sharing, every completion gets its own copy of its prompt.

    The first token of each completion is predicted by the last prompt position.
    """
    packer = _Packer()
    for index, tree in enumerate(trees):
        packer.add(tree, index, share_prompts)
    return packer.finish(trees)


def keep_completions(batch: Batch, keep: Sequence[bool]) -> Batch:
    """Return the batch without some completions, and without prompts that nothing is left of: bool for each of C.

    Pairs must be kept or dropped whole. Columns of K numbers are cut with the targets, others stay as they are.
    """
    of = iter(keep)
    spans: list[TreeSpans] = []
    pieces: list[Span] = []
    size = 0

    def take(span: Span) -> Span:
        nonlocal size
        pieces.append(span)
        size += span.size
        return Span(size - span.size, size)

    for tree in batch.layout.trees:
        kept = [span for span in tree.completions if next(of)]
        if kept or not tree.completions:
            prompt = take(tree.prompt)
            spans.append(TreeSpans(prompt, tuple(take(span) for span in kept)))
    device = batch.tokens.device
    where = torch.cat([torch.arange(span.start, span.stop) for span in pieces] or [torch.zeros(0, dtype=torch.int64)])
    place = torch.full((batch.layout.size,), -1, dtype=torch.int64)
    place[where] = torch.arange(size)
    where, place = where.to(device), place.to(device)
    kept_c = torch.tensor(list(keep), dtype=torch.bool, device=device)
    kept_k = kept_c[batch.target_completion]
    number = kept_c.long().cumsum(0) - 1
    kept_p = kept_c[batch.pairs].all(dim=1)
    return replace(
        batch,
        tokens=batch.tokens[where],
        positions=batch.positions[where],
        layout=Layout(tuple(spans), size),
        predictors=place[batch.predictors[kept_k]],
        targets=batch.targets[kept_k],
        target_completion=number[batch.target_completion[kept_k]],
        completion_tree=batch.completion_tree[kept_c],
        pairs=number[batch.pairs[kept_p]],
        margins=batch.margins[kept_p],
        labels=batch.labels[kept_c],
        target_counts=tuple(count for count, kept in zip(batch.target_counts, keep, strict=True) if kept),
        columns={k: v[kept_k] if v.shape[:1] == kept_k.shape else v for k, v in batch.columns.items()},
    )


class _Packer:
    """Accumulates the columns of a batch; lists of NumPy arrays until `finish`."""

    def __init__(self) -> None:
        self.size = 0
        self.tokens: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.spans: list[TreeSpans] = []
        self.predictors: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.counts: list[int] = []
        self.completion_tree: list[int] = []
        self.labels: list[int] = []
        self.pairs: list[tuple[int, int]] = []
        self.margins: list[float] = []

    def add(self, tree: Tree, index: int, share_prompts: bool) -> None:
        first = len(self.completion_tree)
        self.pairs += [(first + chosen, first + rejected) for chosen, rejected in tree.pairs]
        self.margins += list(tree.margins) or [0.0] * len(tree.pairs)
        branches = [tree.completions] if share_prompts else [(c,) for c in tree.completions]
        for completions in branches:
            prompt = self._append(tree.prompt, 0)
            spans = []
            for completion in completions:
                span = self._append(completion.tokens, len(tree.prompt))
                spans.append(span)
                where = np.flatnonzero(completion.mask)
                self.predictors.append(np.where(where == 0, prompt.stop - 1, span.start + where - 1))
                self.targets.append(completion.tokens[where])
                self.counts.append(len(where))
                self.completion_tree.append(index)
                self.labels.append(-1 if completion.label is None else int(completion.label))
            self.spans.append(TreeSpans(prompt, tuple(spans)))

    def _append(self, tokens: np.ndarray, first_position: int) -> Span:
        span = Span(self.size, self.size + len(tokens))
        self.tokens.append(tokens)
        self.positions.append(np.arange(first_position, first_position + len(tokens)))
        self.size = span.stop
        return span

    def finish(self, trees: Sequence[Tree]) -> Batch:
        counts = np.asarray(self.counts, dtype=np.int64)
        return Batch(
            tokens=_int64(self.tokens),
            positions=_int64(self.positions),
            layout=Layout(tuple(self.spans), self.size),
            predictors=_int64(self.predictors),
            targets=_int64(self.targets),
            target_completion=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
            completion_tree=torch.tensor(self.completion_tree, dtype=torch.int64),
            pairs=torch.tensor(self.pairs, dtype=torch.int64).reshape(-1, 2),
            margins=torch.tensor(self.margins, dtype=torch.float32),
            labels=torch.tensor(self.labels, dtype=torch.int64),
            target_counts=tuple(self.counts),
            digests=tuple(tree.digest() for tree in trees),
            origins=tuple(tree.origin for tree in trees),
        )


def _int64(parts: list[np.ndarray]) -> Tensor:
    if not parts:
        return torch.zeros(0, dtype=torch.int64)
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
