"""Weights & Biases: a run on disk, sent where the recipe says `mode: online`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from truing.training.trackers.settings import WandbSettings
from truing.training.trackers.tracker import TrackedRun, Tracker


def open_tracker(settings: WandbSettings, about: TrackedRun) -> Tracker:
    """Begin a run, or go on under the id of an earlier one; offline that is a second folder, joined by `wandb sync`.

    The last step before a process is killed is lost, with others of the same second: the library writes a step when the
    next one comes, and cannot be asked which it holds.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports of its own faults go to the network even offline
    import wandb

    run_id = about.run_id or secrets.token_hex(4)
    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        mode=settings.mode,
        id=run_id,
        name=about.title,
        config=dict(about.parameters),
        dir=str(about.folder),
        resume="allow" if settings.mode == "online" else None,
        reinit="create_new",
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_save_requirements=False,
            x_disable_stats=True,
            x_disable_meta=True,
            x_transaction_log_flush_interval=1.0,  # seconds; with its own 15 a killed run loses as many
        ),
    )
    return _Wandb(run, run_id, about.logged)


class _Wandb:
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
        import wandb

        rows = [[sample["prompt"], sample["completion"]] for sample in samples]
        self._run.log({"samples": wandb.Table(columns=["prompt", "completion"], data=rows)}, step=step)

    def end(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
