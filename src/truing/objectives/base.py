"""The contract of a loss: frozen hyper-parameters and one pure call.

An objective sees one micro-batch and the totals of the whole optimizer step. It returns this micro-batch's *share* of
the step's loss, so that any split of a step over micro-batches or ranks gives the same loss and the same gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from torch import Tensor

from truing.core.batch import Batch, Outputs, Totals
from truing.core.reduce import Share
from truing.core.settings import Settings
from truing.core.trees import ExampleKind


class Objective(Settings, ABC):
    """A loss with its hyper-parameters. Subclasses declare fields and implement `__call__`."""

    name: ClassVar[str]
    """The word after `use:` in a recipe."""
    paper: ClassVar[str] = ""
    """Where the loss is defined: arXiv id and equation."""
    purpose: ClassVar[str] = ""
    """What it is for, in one sentence."""
    avoid: ClassVar[str] = ""
    """When not to use it, in one sentence."""
    watch: ClassVar[str] = ""
    """Which figures of metrics.jsonl tell that it works, and what they usually are. One remark a line."""
    failure: ClassVar[str] = ""
    """How it goes wrong, how that looks in the figures, and the remedy. One sign a line."""
    examples: ClassVar[ExampleKind]
    """The kind of rows it learns from."""
    learning_rate: ClassVar[float] = 1e-5
    """Default for full weights; LoRA trains at ten times this rate."""
    learning_rate_range: ClassVar[tuple[float, float]] = (1e-7, 1e-3)
    """Sane rates for full weights; outside of it (ten times higher for LoRA) a run warns."""

    reads: ClassVar[Literal["logprobs", "scores"]] = "logprobs"
    """What the trained model is asked for: log-probs of a language model, or scores of a reward model."""
    mismatches: ClassVar[bool] = False
    """Whether each answer needs another prompt's answer as an unlabelled second branch of its tree."""
    groups: ClassVar[bool] = False
    """Whether all comparisons of one prompt belong in one step, as one tree."""

    @property
    def wants_squares(self) -> bool:
        """Whether `outputs.log_squares` is needed, which costs a pass over the logits."""
        return False

    def trained(self, step: int) -> tuple[str, ...]:
        """Roles whose weights move in a step: `policy`, `value`."""
        return ("policy",)

    @property
    def wants_entropy(self) -> bool:
        """Whether `outputs.entropy` is needed."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the columns that have to be in the batch, such as `ref_logprobs`."""
        return ()

    @abstractmethod
    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        """Return this micro-batch's share of the step's loss, divided by counts of `totals` only."""

    @property
    def reference_every(self) -> int | None:
        """Steps after which the reference becomes the policy of that moment; None: it stays as the stage began."""
        return None

    def only_ahead(self, batch: Batch) -> Sequence[bool] | None:
        """Say which completions, of C, serve `look_ahead` alone; None: all serve both passes."""
        return None

    def look_ahead(self, outputs: Sequence[Outputs], batches: Sequence[Batch]) -> Sequence[Mapping[str, Tensor]]:
        """Return columns for each micro-batch from what the policy, without gradient, says of the whole step.

        Where `only_ahead` names completions, the outputs are theirs. Overriding this costs a pass without gradient.
        """
        return [{} for _ in batches]

    @property
    def looks_ahead(self) -> bool:
        """Whether something about the whole step has to be known before its gradient."""
        return type(self).look_ahead is not Objective.look_ahead

    def recall(self, memory: Mapping[str, float]) -> Mapping[str, Tensor]:
        """Return columns from what `remember` has kept of earlier steps; `memory` is empty before the first."""
        return {}

    def remember(self, memory: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
        """Return what later steps need to know, given the figures of the step just made. Saved with checkpoints."""
        return {}

    def for_labels(self, desirable: int, undesirable: int) -> Self:
        """Return the objective with what it takes from the number of judged answers of either kind."""
        return self

    def derived(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return figures of a step that follow from its others."""
        return {}

    def start(self) -> float | None:
        """Return the loss of the first step, where it is known: before the first update policy and reference are one.

        Another value means that the reference is not the starting policy, or that the batch is not what the loss thinks
        it is.
        """
        return None

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        """Say what is wrong with the first step's figures, or return None."""
        return None


def expect_start(loss: float, expected: float, why: str) -> str | None:
    """Complain when a first loss differs from its known value by more than rounding (1e-4 relative)."""
    if abs(loss - expected) <= 1e-4 * max(1.0, abs(expected)):
        return None
    return f"the first loss is {loss:.6g}, but must be {expected:.6g}: {why}"
