"""Wires the guards of a stage: their limits, and what they may go back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truing.core.errors import RecipeError
from truing.data.dataset import Dataset
from truing.objectives.policy_gradient import PolicyGradient
from truing.recipe.schema import Stage
from truing.training.guards import Guards
from truing.training.signs import Facts

if TYPE_CHECKING:
    from truing.build.stage import Assembled


def check_guards(stage: Stage, dataset: Dataset, *, judged: bool) -> None:
    """Refuse to restore a best state where nothing would tell which one it is."""
    restoring = stage.guards.restoring(judged=judged)
    if restoring and not judged and not dataset.held_out:
        raise RecipeError(
            f"guards.{restoring[0]}: restore needs a measure of the best state: data.holdout, data.eval_path or "
            "evaluation.judge"
        )


def guards_of(ready: Assembled) -> Guards:
    """The guards of a stage, which judge as the report of its run will."""
    settings, objective = ready.stage.guards, ready.objective
    limits = settings.limits
    if isinstance(objective, PolicyGradient) and objective.kl_budget is not None:
        limits = limits.model_copy(update={"kl": objective.kl_budget})
    tokens = ready.dataset.report.completion_tokens.p50
    keeps_best = bool(settings.restoring(judged=bool(ready.asked)))
    return Guards(settings, Facts(limits, float(tokens)), keeps_best)
