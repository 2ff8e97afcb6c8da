"""MLflow: a run in a database or on a server."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from truing.training.trackers.settings import MlflowSettings
from truing.training.trackers.tracker import Parameters, TrackedRun, Tracker

PARAMETERS_AT_ONCE = 100
"""How many the client takes in one call."""


def open_tracker(settings: MlflowSettings, about: TrackedRun) -> Tracker:
    """Begin a run, or go on in an earlier one. By default it is in SQLite: plain folders are no longer written."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # a new database tells of each of its tables
        logging.getLogger(name).setLevel(logging.WARNING)
    local = about.folder / "mlflow"
    if settings.uri is None:
        local.mkdir(exist_ok=True)
    client = MlflowClient(settings.uri or f"sqlite:///{local / 'mlflow.db'}")
    if about.run_id is not None:
        client.update_run(about.run_id, status="RUNNING")
        steps = [metric.step for metric in client.get_metric_history(about.run_id, "loss")]
        return _Mlflow(client, about.run_id, max(steps, default=0))
    known = client.get_experiment_by_name(settings.experiment)
    place = (local / "artifacts").as_uri() if settings.uri is None else None
    experiment = client.create_experiment(settings.experiment, place) if known is None else known.experiment_id
    run_id = client.create_run(experiment, run_name=about.title).info.run_id
    _write_parameters(client, run_id, about.parameters)
    return _Mlflow(client, run_id, 0)


def _write_parameters(client: Any, run_id: str, parameters: Parameters) -> None:
    from mlflow.entities import Param

    written = [Param(key, str(value)) for key, value in parameters.items()]
    for some in range(0, len(written), PARAMETERS_AT_ONCE):
        client.log_batch(run_id, params=written[some : some + PARAMETERS_AT_ONCE])


class _Mlflow:
    def __init__(self, client: Any, run_id: str, logged: int) -> None:
        self._client, self._run_id, self._logged = client, run_id, logged

    @property
    def run_id(self) -> str:
        return self._run_id

    @property
    def logged(self) -> int:
        return self._logged

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_key(name), value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        self._logged = step

    def show(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        text = "\n\n".join(f"{sample['prompt']}\n⟶\n{sample['completion']}" for sample in samples)
        self._client.log_text(self._run_id, text, f"samples/step-{step:06d}.txt")

    def end(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "FAILED")


def _key(name: str) -> str:
    """A metric's name in the letters that MLflow takes.

    >>> _key("rewards/my fn@2"), _key("rewards/chosen")
    ('rewards/my fn_2', 'rewards/chosen')
    """
    return re.sub(r"[^\w\-. :/]", "_", name)
