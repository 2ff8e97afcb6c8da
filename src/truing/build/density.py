"""Wires BCO's distribution matching: prompts through the stage's start, the regression, a number for each row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from truing.core.trees import Tree
from truing.data.packing import pack
from truing.objectives.bco import DENSITY_RATIO
from truing.training.density import DensityRatios, Fitted, Prompts, cross_fit, keep_ratios
from truing.training.progress import Reporter
from truing.training.reference import LogprobStore
from truing.training.run_directory import RunDirectory
from truing.training.source import Annotate

if TYPE_CHECKING:
    from truing.build.stage import Assembled

MOST_FITTED = 8192
"""Prompts that the regression is fitted to at most; with 2,048 features each they take 128 MiB in float64."""

ALIKE, APART = 0.55, 0.95
"""AUC up to which prompts are called alike, and from which on they are called apart."""

Prompt = bytes
"""The token ids of a prompt, int32: what tells prompts apart."""


def with_density_ratios(annotate: Annotate, ready: Assembled, run: RunDirectory, reporter: Reporter) -> Annotate:
    """Return an annotator that also fills `density_ratio`, where the objective needs it.

    The ratios are found once, before the first step, and kept in the run directory, where a resumed run reads them.
    """
    if DENSITY_RATIO not in ready.objective.needs:
        return annotate
    company = ready.built.company
    store = LogprobStore(run.path / "density", _key(ready), company.ranks)
    if store.damage is not None:
        reporter.warn(store.damage)
    if not len(store):  # the file is whole or absent
        with company.whole():
            if company.ranks.first:
                _fill(store, ready, reporter)
        store.exchange()
    ratios = DensityRatios(store)
    return lambda batch: ratios(annotate(batch))


def _fill(store: LogprobStore, ready: Assembled, reporter: Reporter) -> None:
    """Fit to the training rows' prompts, and keep the ratio of every row."""
    counts = _counts(ready.dataset.train)
    ordered = sorted(counts, key=lambda prompt: hashlib.sha256(prompt).digest())  # the order of rows has no say
    trees = (*ready.dataset.train, *ready.dataset.held_out)
    fitted = ordered[:MOST_FITTED]
    others = sorted({_prompt(tree) for tree in trees} - set(fitted))
    reporter.begin("prompts", len(fitted) + len(others))
    features: dict[Prompt, Tensor] = {}
    for prompts, states in _states(ready, fitted):
        features.update(zip(prompts, states, strict=True))
        reporter.advance(len(features))
    answers = torch.tensor([counts[prompt] for prompt in fitted], dtype=torch.float64)
    found = cross_fit(Prompts(torch.stack([features[p] for p in fitted]).double(), answers[:, 0], answers[:, 1]))
    table = dict(zip(fitted, found.log_ratio, strict=True))
    for prompts, states in _states(ready, others):
        table.update(zip(prompts, found.whole.log_ratio(states), strict=True))
        reporter.advance(len(table))
    reporter.end()
    reporter.say(f"  {sentence(found)}")
    keep_ratios(store, [tree.digest() for tree in trees], torch.stack([table[_prompt(tree)] for tree in trees]))
    store.save()


def sentence(found: Fitted) -> str:
    """Say how well prompts alone tell the classes apart, and what follows from it."""
    text = (
        f"prompts alone tell desirable from undesirable with AUC {found.auc:.2f} on prompts left out (0.5: not at all)"
    )
    if found.auc <= ALIKE:
        return f"{text}; they are alike, so matching is hardly needed"
    if found.auc >= APART:
        return f"{text}; they hardly overlap, so most weights stand at min_density_ratio and matching mends little"
    return f"{text}; undesirable answers are weighed by it"


def _states(ready: Assembled, prompts: Sequence[Prompt]) -> Iterator[tuple[list[Prompt], Tensor]]:
    """Yield some of the prompts with their features, float32 [n, d] on the CPU, until all have been."""
    tokens = [np.frombuffer(prompt, dtype=np.int32) for prompt in prompts]
    for rows in pack([len(prompt) for prompt in tokens], ready.plan.micro_tokens):
        with torch.no_grad():
            states = ready.built.reference.prompt_states([tokens[row] for row in rows])
        yield [prompts[row] for row in rows], states.cpu()


def _counts(trees: Sequence[Tree]) -> dict[Prompt, tuple[int, int]]:
    """Desirable and undesirable answers of each prompt."""
    counts: dict[Prompt, tuple[int, int]] = {}
    for tree in trees:
        good, bad = counts.get(_prompt(tree), (0, 0))
        labels = [completion.label for completion in tree.completions]
        counts[_prompt(tree)] = (good + labels.count(True), bad + labels.count(False))
    return counts


def _prompt(tree: Tree) -> Prompt:
    return np.ascontiguousarray(tree.prompt, dtype=np.int32).tobytes()


def _key(ready: Assembled) -> str:
    """All that the ratios depend on: the start, its precision, the rows and their labels."""
    built = ready.built
    rows = hashlib.sha256()
    for tree in ready.dataset.train:
        rows.update(f"{tree.digest()} {[completion.label for completion in tree.completions]}\n".encode())
    held_out = hashlib.sha256("\n".join(tree.digest() for tree in ready.dataset.held_out).encode())
    start = f"{built.start_digest} {built.dtype} {built.calibration.matmul_precision}"
    return f"{start} {rows.hexdigest()} {held_out.hexdigest()}"
