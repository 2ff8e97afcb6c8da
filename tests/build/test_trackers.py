"""Trackers of whole runs: they change no bit, go on where a run was cut, and hold what metrics.jsonl holds."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.build.runs import metrics
from tests.training.test_trackers import Remembering
from truing.build.chain import resume, run
from truing.build.following import flat
from truing.core.errors import MachineError, RecipeError
from truing.recipe.load import dump, load_recipe, recipe_from
from truing.training.progress import Silent
from truing.training.trackers import registry
from truing.training.trackers.followed import Opener
from truing.training.trackers.tracker import TrackedRun
from truing.training.trainer import Trainer
from truing.world.base_model import write_base_model
from truing.world.records import WorldSettings, write_world

WANDB_HEADER = 7
"""Bytes before the first record of a .wandb file."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=30, demonstrations=30, pairs=30))
    write_base_model(folder / "model")
    return {
        "model": str(folder / "model"),
        "adapter": {"use": "lora", "rank": 4},
        "samples": {"count": 1, "max_new_tokens": 4},
        "batch": {"examples": 4, "micro_tokens": 256},
        "checkpoint": {"every": 2},
        "precision": {"matmul": "highest"},
        "objective": {"use": "dpo"},
        "data": {"path": str(files.pairs), "max_length": 48},
        "optim": {"lr": 1e-3, "max_steps": 5},
    }


def follow_with(monkeypatch: pytest.MonkeyPatch, opener: Opener) -> None:
    """Let every tracker of a recipe be this one."""

    def fake(asked: Any) -> Mapping[str, Opener]:
        return {settings.use: opener for settings in asked}

    monkeypatch.setattr("truing.build.following.openers", fake)
    monkeypatch.setattr("truing.build.chain.check_installed", lambda asked: None)


def cut_and_resumed(recipe: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run five steps, killed before the fourth, with a checkpoint of the second."""
    real = Trainer._update

    def dies(self: Trainer, prepared: Any, total: int) -> Any:
        if prepared.index == 3:
            raise KeyboardInterrupt
        return real(self, prepared, total)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", dies)
        with pytest.raises(KeyboardInterrupt):
            run(recipe_from(recipe), folder, Silent())
    resume(folder, Silent())


def test_a_tracker_changes_no_bit_of_the_result(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = run(recipe_from(recipe), tmp_path / "without", Silent())
    tracker = Remembering()
    follow_with(monkeypatch, tracker.opened)
    tracked = run(recipe_from({**recipe, "trackers": "wandb"}), tmp_path / "with", Silent())
    first, second = (load_file(final / "adapter_model.safetensors") for final in (without, tracked))
    assert all(torch.equal(first[key], second[key]) for key in first)
    rows = metrics(tmp_path / "with")
    assert [step for step, _ in tracker.rows] == [1, 2, 3, 4, 5]
    assert [figures["loss"] for _, figures in tracker.rows] == [row["loss"] for row in rows]
    assert [step for step, _ in tracker.samples] == [0, 5]
    assert tracker.about is not None
    assert tracker.about.parameters["optim.lr"] == 1e-3
    assert tracker.about.parameters["objective.beta"] == 0.1
    assert tracker.ended == [True]


def test_a_cut_run_is_failed_and_its_resumption_repeats_no_step(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Remembering()
    follow_with(monkeypatch, tracker.opened)
    cut_and_resumed({**recipe, "trackers": ["mlflow"]}, tmp_path / "run", monkeypatch)
    assert [step for step, _ in tracker.rows] == [1, 2, 3, 4, 5]
    assert tracker.ended == [False, True]


def test_a_tracker_that_cannot_begin_stops_a_run_before_its_first_step_only(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(about: TrackedRun) -> Remembering:
        raise ConnectionError("nobody answers")

    follow_with(monkeypatch, refuses)
    with pytest.raises(MachineError, match="wandb cannot begin: ConnectionError: nobody answers") as told:
        run(recipe_from({**recipe, "trackers": "wandb"}), tmp_path / "run", Silent())
    assert told.value.exit_code == 4
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    run(recipe_from({**recipe, "trackers": []}), tmp_path / "run", Silent())  # the same output is free again
    stages = [{"name": "first", "trackers": []}, {"name": "second", "trackers": ["wandb"]}]
    final = run(recipe_from({**recipe, "stages": stages}), tmp_path / "chain", Silent())
    assert final.is_dir(), "the first stage was trained; the second goes on untracked"


def test_a_missing_package_is_named_before_anything_is_written(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"mlflow is not installed.*truing\[trackers\]") as told:
        run(recipe_from({**recipe, "trackers": ["mlflow"]}), tmp_path / "run", Silent())
    assert told.value.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("trackers", "complaint"),
    [
        ("tensorbord", "no tracker 'tensorbord'; did you mean 'tensorboard'"),
        ({"use": "wandb", "projct": "x"}, r"'trackers\.0\.projct' is not a known key; did you mean 'project'"),
        (["tensorboard", {"use": "mlflow", "project": "x"}], r"'trackers\.1\.project' is not a known key"),
        ({"use": "wandb", "mode": "off"}, r"'trackers\.0\.mode': input should be 'offline' or 'online'"),
        (["wandb", {"use": "wandb"}], "'wandb' is given twice"),
        ([{"project": "x"}], "says with use:"),
        (3, "trackers"),
    ],
)
def test_a_mistake_in_the_section_names_key_and_remedy(recipe: dict[str, Any], trackers: Any, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        recipe_from({**recipe, "trackers": trackers})


def test_the_written_recipe_reads_back_with_its_trackers(recipe: dict[str, Any], tmp_path: Path) -> None:
    resolved = recipe_from({**recipe, "trackers": ["tensorboard", {"use": "wandb", "project": "mine"}]})
    (tmp_path / "recipe.yaml").write_text(dump(resolved), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml") == resolved


def test_a_recipe_is_told_flat_and_without_its_trackers(recipe: dict[str, Any]) -> None:
    told = flat(recipe_from({**recipe, "trackers": "wandb", "samples": {"prompts": ["a", "ü"]}}).stages[0])
    assert told["samples.prompts"] == '["a", "ü"]'
    assert told["template"] is None
    assert not any("trackers" in key for key in told)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"), address
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


def test_tensorboard_reads_each_step_once(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cut_and_resumed({**recipe, "trackers": "tensorboard"}, tmp_path / "run", monkeypatch)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    read = events.Scalars("loss")
    rows = metrics(tmp_path / "run")
    assert [event.step for event in read] == [1, 2, 3, 4, 5]
    assert [event.value for event in read] == pytest.approx([row["loss"] for row in rows], rel=1e-6)
    assert "rewards/margins" in events.Tags()["scalars"]
    assert "samples/1/text_summary" in events.Tags()["tensors"]
    assert "recipe/text_summary" in events.Tags()["tensors"]


@pytest.mark.usefixtures("no_network")
def test_wandb_offline_writes_files_and_sends_nothing(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    cut_and_resumed({**recipe, "trackers": {"use": "wandb", "project": "mine"}}, tmp_path / "run", monkeypatch)
    written = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 2, "one before the cut and one after it"
    assert len({file.name for file in written}) == 1, "both are one run"
    records = [_wandb_history(file) for file in written]
    assert [step for record in records for step in record] == [1, 2, 3, 4, 5]


def _wandb_history(file: Path) -> list[int]:
    """The steps whose loss a W&B file holds."""
    from wandb.proto import wandb_internal_pb2

    steps = []
    for data in _log_records(file.read_bytes()[WANDB_HEADER:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if "loss" in row:
            steps.append(int(record.history.step.num))
    return steps


def _log_records(content: bytes) -> list[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB with pieces of records, a header of 7 bytes each."""
    records, place = [b""], 0
    while place + 7 <= len(content):
        left = 2**15 - (place + WANDB_HEADER) % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        records[-1] += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            records.append(b"")
    return records[:-1]


@pytest.mark.usefixtures("no_network")
def test_mlflow_reads_the_run_back(recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    cut_and_resumed({**recipe, "trackers": "mlflow"}, tmp_path / "run", monkeypatch)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("truing")
    (found,) = client.search_runs([experiment.experiment_id])
    history = sorted(client.get_metric_history(found.info.run_id, "loss"), key=lambda metric: metric.step)
    assert [(m.step, m.value) for m in history] == [(r["step"], r["loss"]) for r in metrics(tmp_path / "run")]
    assert found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.001"
    assert [file.path for file in client.list_artifacts(found.info.run_id, "samples")] == [
        "samples/step-000000.txt",
        "samples/step-000005.txt",
    ]


@pytest.mark.usefixtures("no_network")
def test_trackio_reads_the_run_back(recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "store")
    cut_and_resumed({**recipe, "trackers": {"use": "trackio", "project": "mine"}}, tmp_path / "run", monkeypatch)
    (name,) = sqlite_storage.SQLiteStorage.get_runs("mine")
    rows = [row for row in sqlite_storage.SQLiteStorage.get_logs("mine", name) if "loss" in row]
    assert [(row["step"], row["loss"]) for row in rows] == [(r["step"], r["loss"]) for r in metrics(tmp_path / "run")]
    config = sqlite_storage.SQLiteStorage.get_run_config("mine", name)
    assert config is not None
    assert config["optim.lr"] == 1e-3
