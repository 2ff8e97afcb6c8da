"""Where a stage's steps come from, and what they move: fixed rows, or completions that the policy writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from truing.build.annotator import annotator
from truing.build.density import with_density_ratios
from truing.build.policy import BuiltPolicy
from truing.build.rollout_stage import evaluator, rollout_parts
from truing.core.parameters import ParameterGroup
from truing.core.trees import Tree
from truing.models.roles import Role, Trained
from truing.training.evaluation import evaluate
from truing.training.progress import Reporter
from truing.training.reference import ReferenceLogprobs
from truing.training.run_directory import RunDirectory
from truing.training.source import Source, TreeSource, fixed_batches

if TYPE_CHECKING:
    from truing.build.stage import Assembled


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What differs between a stage of fixed rows and one of rollouts."""

    trained: Trained
    policy: Role
    source: Source
    groups: list[ParameterGroup]
    evaluate: Callable[[Mapping[str, float]], Mapping[str, float]] | None
    before_checkpoint: Callable[[], None] | None = None


def sizes_of(built: BuiltPolicy, trees: Sequence[Tree]) -> tuple[int, ...]:
    """Tokens that each tree takes in a batch."""
    shared = built.model.sharing == "tree"
    return tuple(tree.size if shared else tree.unshared_size for tree in trees)


def by_rollouts(ready: Assembled, run: RunDirectory, reporter: Reporter) -> Moved:
    """Load everyone who has a part in a rollout."""
    parts = rollout_parts(ready, run, reporter)
    groups = parts.cast.groups(ready.optim.lr or 0.0)
    return Moved(parts.cast.trained, parts.cast.policy, parts.source, groups, evaluator(parts.source))


def by_rows(ready: Assembled, run: RunDirectory, reporter: Reporter) -> Moved:
    """Pack the rows, and compute ahead what their batches need."""
    stage, built, company = ready.stage, ready.built, ready.built.company
    company.share(built.model, built.adapters, built.dtype)
    held_out = fixed_batches(
        ready.dataset.held_out[: stage.evaluation.limit],
        sizes_of(built, ready.dataset.held_out[: stage.evaluation.limit]),
        ready.plan.micro_tokens,
        built.model.collate,
        built.device,
        company.dealer,
    )
    bare = TreeSource(
        ready.dataset.train,
        ready.plan,
        built.model.lay_out,
        lambda batch: batch,
        built.device,
        ready.total_steps,
        company.dealer,
    )
    reference = annotator(ready, run, bare, held_out.all, reporter)
    annotate = with_density_ratios(reference, ready, run, reporter)

    def measured(memory: Mapping[str, float]) -> Mapping[str, float]:
        return evaluate(
            built.policy, ready.objective, held_out.batches, annotate, memory, held_out.fillers, company.ranks
        )

    return Moved(
        built.policy,
        built.policy,
        replace(bare, annotate=annotate),
        built.parameter_groups(ready.optim.lr or 0.0),
        measured if len(ready.dataset.held_out) else None,
        reference.save if isinstance(reference, ReferenceLogprobs) else None,
    )
