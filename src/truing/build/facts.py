"""What is known of a stage before its first step, written into its run directory."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from truing.build.environment import describe
from truing.core.errors import RunError
from truing.models.lora.settings import AdapterSettings
from truing.recipe.load import dump
from truing.recipe.schema import Recipe, Stage
from truing.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from truing.build.stage import Assembled


def resolved(ready: Assembled) -> Stage:
    """The stage with everything written out that was found or chosen for it."""
    use = ready.stage.objective["use"]
    return ready.stage.model_copy(
        update={
            "model": ready.built.start.model,
            "objective": {"use": use, **ready.objective.model_dump(mode="json")},
            "optim": ready.optim,
            "adapter": _adapter_of(ready),
        }
    )


def write_facts(ready: Assembled, run: RunDirectory, trained: int) -> None:
    """Write what does not change during a run."""
    built, report = ready.built, ready.dataset.report
    run.write_text("recipe.yaml", dump(Recipe(output=str(run.path), stages=(resolved(ready),))))
    environment = describe(ready.stage, built.device, built.dtype, built.calibration, _hashes(ready))
    run.write_json("environment.json", {**environment, "data": _files(ready), "attention": built.check.sentence})
    run.write_json("data.json", report.as_json())
    run.write_json("plan.json", _planned(ready, trained))


def check_unchanged(ready: Assembled, run: RunDirectory) -> None:
    """Refuse to go on with other data, or from another model, than the run began with."""
    began = run.read_object("environment.json")
    for file in began["data"]:
        now = {each["name"]: each["sha256"] for each in _files(ready)}.get(file["name"])
        if now != file["sha256"]:
            raise RunError(
                f"{file['name']} has changed since {run.path} began (SHA-256 {file['sha256'][:12]} then, "
                f"{now[:12] if now else 'not read'} now); put the old file back, or begin a new run"
            )
    for name, now in _hashes(ready).items():
        if began[name] != now:
            what = name.removesuffix("_sha256")
            raise RunError(
                f"the {what} of {run.path} is not the one that it began with ({name} in environment.json); "
                "put it back, or begin a new run"
            )


def _hashes(ready: Assembled) -> dict[str, str | None]:
    return {
        "model_sha256": ready.built.loaded.digest,
        "start_sha256": ready.built.start_digest,
        "template_sha256": ready.dataset.template.digest,
    }


def _files(ready: Assembled) -> list[dict[str, Any]]:
    """The data files, with the SHA-256 of each."""
    return [asdict(file) for file in ready.dataset.report.files]


def _adapter_of(ready: Assembled) -> AdapterSettings | None:
    adapter, start = ready.stage.adapter, ready.built.start.adapter
    return adapter.model_copy(update={"start": str(start)}) if adapter is not None and start is not None else adapter


def _planned(ready: Assembled, trained: int) -> dict[str, Any]:
    return {
        "steps": ready.total_steps,
        "rows": ready.plan.rows_seen(),
        "tokens_per_pass": sum(ready.plan.sizes),
        "longest_row_tokens": max(ready.plan.sizes),
        "trained_parameters": trained,
        **({} if ready.forecast is None else ready.forecast.as_json()),
    }
