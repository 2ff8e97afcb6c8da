"""The `trackers:` section of a recipe. Free of torch, so that a recipe can be read without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from truing.core.errors import suggest
from truing.core.settings import Settings


class TensorboardSettings(Settings):
    """Event files for TensorBoard."""

    use: Literal["tensorboard"] = "tensorboard"
    """Write scalars and samples that `tensorboard --logdir RUN` shows."""
    folder: str | None = None
    """Where the event files go; by default `tensorboard` in the run directory."""


class WandbSettings(Settings):
    """A run of Weights & Biases."""

    use: Literal["wandb"] = "wandb"
    """Write a W&B run; what it keeps on disk is in `wandb` in the run directory."""
    project: str = Field(default="truing", min_length=1)
    """The project that the run belongs to."""
    entity: str | None = None
    """The user or team that the project belongs to."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` sends nothing; `wandb sync` sends it later. `online` sends while training."""


class MlflowSettings(Settings):
    """A run of MLflow."""

    use: Literal["mlflow"] = "mlflow"
    """Write a run through MLflow's client."""
    uri: str | None = None
    """Tracking server or database, such as `sqlite:///runs/mlflow.db` for many runs side by side; by default
    `mlflow/mlflow.db` in the run directory."""
    experiment: str = Field(default="truing", min_length=1)
    """The experiment that the run belongs to."""


class TrackioSettings(Settings):
    """A run of Trackio."""

    use: Literal["trackio"] = "trackio"
    """Write a run where `trackio show` finds it: in TRACKIO_DIR, or the library's own folder."""
    project: str = Field(default="truing", min_length=1)
    """The project that the run belongs to."""
    space: str | None = None
    """A Hugging Face Space (`name/space`) to send the run to; by default nothing leaves the machine but, where somebody
    is logged in to the hub, the library's question for their name."""


TrackerSettings = Annotated[
    TensorboardSettings | WandbSettings | MlflowSettings | TrackioSettings, Field(discriminator="use")
]

NAMES = ("tensorboard", "wandb", "mlflow", "trackio")


def from_words(value: Any) -> Any:
    """Let a word alone stand for `{use: WORD}`, and one tracker for a list of one; name a misspelt one.

    >>> from_words("wandb")
    [{'use': 'wandb'}]
    """
    entries = [value] if isinstance(value, str | dict) else value
    if not isinstance(entries, Sequence):
        return value
    spelt = [{"use": entry} if isinstance(entry, str) else entry for entry in entries]
    named = [entry.get("use") for entry in spelt if isinstance(entry, dict)]
    for name in named:
        if name is None:
            raise ValueError(f"a tracker says with use: which one it is; known: {', '.join(NAMES)}")
        if name not in NAMES:
            raise ValueError(f"there is no tracker '{name}'{suggest(str(name), NAMES)}")
        if named.count(name) > 1:
            raise ValueError(f"'{name}' is given twice; a stage has at most one of each")
    return spelt
