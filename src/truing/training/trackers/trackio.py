"""Trackio: a run in the library's own local store, or in a Space where the recipe names one."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from truing.core.errors import RecipeError
from truing.training.trackers.settings import TrackioSettings
from truing.training.trackers.tracker import TrackedRun, Tracker

SENDERS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Environment variables by which the library would send a run that the recipe wants kept here."""


def open_tracker(settings: TrackioSettings, about: TrackedRun) -> Tracker:
    """Begin a run, or go on in an earlier one, which the library finds by its name.

    Steps of the last half second before a process is killed are lost: the library writes by the batch.
    """
    import trackio

    for variable in SENDERS:
        if settings.space is None and os.environ.get(variable):
            raise RecipeError(f"{variable} is set, but the recipe names no space; unset it, or give trackio a space:")
    name = about.run_id or f"{about.title}-{secrets.token_hex(4)}"
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, into the live display
        run = trackio.init(
            project=settings.project,
            name=name,
            config=dict(about.parameters),
            space_id=settings.space,
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
    return _Trackio(run, name, about.logged)


class _Trackio:
    def __init__(self, run: Any, run_id: str, logged: int) -> None:
        self._run, self._run_id, self._logged = run, run_id, logged

    @property
    def run_id(self) -> str:
        return self._run_id

    @property
    def logged(self) -> int:
        return self._logged

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)
        self._logged = step

    def show(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        import trackio

        rows = [[sample["prompt"], sample["completion"]] for sample in samples]
        self._run.log({"samples": trackio.Table(columns=["prompt", "completion"], data=rows)}, step=step)

    def end(self, *, finished: bool) -> None:
        """Write what is left; the library has no place for how a run ended."""
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()
