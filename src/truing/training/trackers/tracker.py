"""What an experiment tracker is to a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Parameters = Mapping[str, str | int | float | bool | None]
"""The resolved recipe, flat: `optim.lr` → 1e-5."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of the run that it is to follow."""

    folder: Path
    """The run directory."""
    title: str
    """For people; other runs may have the same."""
    parameters: Parameters
    """What the recipe says, everything written out."""
    run_id: str | None = None
    """Under which id the tracker knows it from before it was interrupted."""
    step: int = 0
    """The steps that stand: the next one is `step + 1`, even where later ones were made before an interruption."""
    logged: int = 0
    """The last step that the tracker was handed before."""


class Tracker(Protocol):
    """Follows one run. Its methods may raise anything; then it is dropped, and the run goes on."""

    @property
    def run_id(self) -> str:
        """What names this run to the tracker."""
        ...

    @property
    def logged(self) -> int:
        """The last step that it holds, and is not to be given again."""
        ...

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take a step's figures, all finite."""
        ...

    def show(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Take rows of samples.jsonl. A model wrote the text: it may hold anything."""
        ...

    def end(self, *, finished: bool) -> None:
        """Let go of the run, which is at its end or has failed."""
        ...
