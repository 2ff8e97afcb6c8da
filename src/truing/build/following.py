"""Lets a stage's trackers begin, each with the parameters of the resolved recipe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from truing.build.facts import resolved
from truing.core.errors import MachineError
from truing.recipe.schema import Stage
from truing.training.trackers.registry import openers
from truing.training.trackers.tracker import Parameters
from truing.training.trainer import Trainer

if TYPE_CHECKING:
    from truing.build.stage import Assembled


def begin_trackers(ready: Assembled, trainer: Trainer, step: int, untrained: bool) -> None:
    """Let the trackers begin. One that cannot stops a run in which nothing has been trained, and no other."""
    stage = resolved(ready)
    complaints = trainer.trackers.open(openers(stage.trackers), step, flat(stage))
    if complaints and untrained:
        raise MachineError(f"trackers: {'; '.join(complaints)}; mend that, or take it out of trackers:")
    for complaint in complaints:
        trainer.reporter.warn(complaint)


def flat(stage: Stage) -> Parameters:
    """A stage's keys as a recipe's `--set` would name them, with their values; a list is one value."""
    found: dict[str, str | int | float | bool | None] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            found[prefix] = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value

    visit("", stage.model_dump(mode="json", exclude={"trackers"}))
    return found
