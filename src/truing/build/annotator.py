"""What fills the columns of a stage's batches before its gradient: the log-probs of its reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from truing.core.batch import Batch
from truing.core.errors import RecipeError
from truing.objectives.bco import DENSITY_RATIO
from truing.training.progress import Reporter
from truing.training.reference import LogprobStore, ReferenceLogprobs
from truing.training.run_directory import RunDirectory
from truing.training.source import Annotate, TreeSource

if TYPE_CHECKING:
    from truing.build.stage import Assembled


def annotator(
    ready: Assembled, run: RunDirectory, bare: TreeSource, held_out: Sequence[Batch], reporter: Reporter
) -> Annotate:
    """Return what fills the columns that the objective needs."""
    unknown = set(ready.objective.needs) - {"ref_logprobs", DENSITY_RATIO}
    if unknown:
        raise RecipeError(
            f"objective {ready.objective.name} needs the column '{sorted(unknown)[0]}', which nothing here fills; "
            f"known: ref_logprobs, {DENSITY_RATIO}"
        )
    if "ref_logprobs" not in ready.objective.needs:
        return lambda batch: batch
    settings, apart = ready.stage.reference, ready.objective.only_ahead
    repeated = ready.plan.rows_seen() > len(ready.dataset.train)
    ranks = ready.built.company.ranks
    ahead = settings.precompute_ref_log_probs
    if ahead is None:  # a row may come by another rank next time
        ahead = not ready.lora or (ranks.several and repeated)
    if not ahead and not ready.lora:
        raise RecipeError(
            "reference.precompute_ref_log_probs: false needs the reference beside the policy, which full weights would "
            "have to keep as a second model; leave it out, or train with an adapter"
        )
    if ready.objective.reference_every is not None:
        # Nothing to keep: the next pass has another reference.
        return ReferenceLogprobs(ready.built.reference, None, apart)
    if not ahead and (ranks.several or (not repeated and settings.cache is None)):
        return ReferenceLogprobs(ready.built.reference, None, apart)
    folder = Path(settings.cache) if settings.cache is not None else run.path / "reference"
    built = ready.built
    key = f"{built.start_digest} {built.dtype} {built.calibration.matmul_precision}"
    store = LogprobStore(folder, key, ranks)
    if store.damage is not None:
        reporter.warn(store.damage)
    reference = ReferenceLogprobs(built.reference, store, apart)
    if not ahead:
        return reference  # each row's when it first comes by
    count = min(ready.plan.rows_seen(), len(ready.dataset.train)) + sum(len(b.digests) for b in held_out)
    reporter.begin("reference", count)
    done = 0

    def advance(trees: int) -> None:
        nonlocal done
        done += trees
        reporter.advance(min(done, count))

    reference.precompute([*held_out, *bare.first_pass()], advance)
    reporter.end()
    return reference
