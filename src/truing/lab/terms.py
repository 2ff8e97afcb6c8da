"""What decides how an arm comes out, as one digest: by it a kept outcome is known to be the one that is asked for."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from truing.lab.arms import BASE, REFERENCE, TRUTH, Arm, Experiment


def terms_of_base(experiment: Experiment) -> str:
    """A digest of all that the base model depends on."""
    return _digest({"stage": experiment.base, "world": experiment.world.model_dump()})


def terms_of(experiment: Experiment, name: str) -> str:
    """A digest of all that an arm's outcome depends on beside its seed: its own settings, and those of what it uses."""
    if name == BASE:
        reference = terms_of(experiment, REFERENCE)
        return _digest([terms_of_base(experiment), reference, experiment.prompts])
    arm = next(arm for arm in experiment.arms if arm.name == name)
    return _digest(
        {
            "stage": arm.stage,
            "data": arm.data,
            "world": {**experiment.world.model_dump(), **arm.world},
            "prompts": experiment.prompts,
            "looks": experiment.looks,
            "uses": [_used(experiment, arm, other) for other in (arm.start, arm.reward, REFERENCE)],
        }
    )


def _used(experiment: Experiment, arm: Arm, other: str | None) -> str | None:
    if other in (None, TRUTH, arm.name):
        return other
    return terms_of_base(experiment) if other == BASE else terms_of(experiment, str(other))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
