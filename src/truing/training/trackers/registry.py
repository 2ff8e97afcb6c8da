"""From what a recipe says to trackers: which package each needs, and its adapter, imported when it is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import assert_never

from truing.core.errors import RecipeError
from truing.training.trackers.followed import Opener
from truing.training.trackers.settings import (
    MlflowSettings,
    TensorboardSettings,
    TrackerSettings,
    TrackioSettings,
    WandbSettings,
)
from truing.training.trackers.tracker import TrackedRun, Tracker


def check_installed(asked: Iterable[TrackerSettings]) -> None:
    """Refuse a tracker whose package is missing; each package has the tracker's name."""
    for settings in asked:
        if find_spec(settings.use) is None:
            raise RecipeError(
                f"trackers: {settings.use} is not installed; install the extra: pip install 'truing[trackers]', "
                f"or pip install {settings.use}"
            )


def openers(asked: Iterable[TrackerSettings]) -> Mapping[str, Opener]:
    """What opens each tracker, by its name."""
    return {settings.use: partial(_open, settings) for settings in asked}


def _open(settings: TrackerSettings, about: TrackedRun) -> Tracker:
    match settings:
        case TensorboardSettings():
            from truing.training.trackers import tensorboard

            return tensorboard.open_tracker(settings, about)
        case WandbSettings():
            from truing.training.trackers import wandb

            return wandb.open_tracker(settings, about)
        case MlflowSettings():
            from truing.training.trackers import mlflow

            return mlflow.open_tracker(settings, about)
        case TrackioSettings():
            from truing.training.trackers import trackio

            return trackio.open_tracker(settings, about)
    assert_never(settings)
