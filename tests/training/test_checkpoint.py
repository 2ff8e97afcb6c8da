"""Checkpoints are whole or absent, verified, and free of pickle; a run directory has one writer."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from truing.core.errors import RunError
from truing.training import checkpoint
from truing.training.checkpoint import Checkpoint
from truing.training.run_directory import RunDirectory
from truing.training.settings import CheckpointSettings


def state(step: int) -> Checkpoint:
    return Checkpoint(step, {"weight.w": torch.full((2, 2), float(step))}, {"rows": step * 10})


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(3), CheckpointSettings())
    loaded, complaints = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    assert (loaded.step, loaded.values, complaints) == (3, {"rows": 30}, [])
    assert torch.equal(loaded.tensors["weight.w"], torch.full((2, 2), 3.0))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 1000000):
        checkpoint.save(tmp_path, state(step), CheckpointSettings())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-1000000"]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path, file: str, harm: str) -> None:
    checkpoint.save(tmp_path, state(1), CheckpointSettings())
    victim = checkpoint.save(tmp_path, state(2), CheckpointSettings()) / file
    content = victim.read_bytes()
    if harm == "flip":
        middle = len(content) // 2
        victim.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
    elif harm == "cut":
        victim.write_bytes(content[:-1])
    else:
        victim.unlink()
    loaded, complaints = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1
    assert file == "manifest.json" or "step-000002 is damaged" in complaints[0]


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1), CheckpointSettings())
    half = tmp_path / ".step-000002.part"
    half.mkdir()
    (half / "state.json").write_text("{", encoding="utf-8")
    loaded, complaints = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    assert (loaded.step, complaints) == (1, [])


def test_random_states_survive_the_disk(tmp_path: Path) -> None:
    torch.manual_seed(5)
    random.seed(6)
    np.random.seed(7)
    tensors, values = checkpoint.random_states()
    checkpoint.save(tmp_path, Checkpoint(1, tensors, {"random": values}), CheckpointSettings())
    expected = (torch.rand(3), random.random(), np.random.rand(3))
    loaded, _ = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    checkpoint.restore_random_states(loaded.tensors, loaded.values["random"])
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert np.array_equal(np.random.rand(3), expected[2])


def test_a_run_directory_has_one_writer(tmp_path: Path) -> None:
    first = RunDirectory.create(tmp_path / "run")
    with pytest.raises(RunError, match="is being written by process"):
        RunDirectory.create(tmp_path / "run")
    first.close()
    RunDirectory.create(tmp_path / "run").close()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunError, match=r"not empty \(it has thesis\.txt\)"):
        RunDirectory.create(tmp_path)
    run = RunDirectory.create(tmp_path / "run")
    run.write_text("recipe.yaml", "stages: []")
    run.close()
    RunDirectory.create(tmp_path / "run").close()  # it had not made a step
    run.write_text("recipe.yaml", "stages: []")
    run.append("metrics.jsonl", {"step": 1})
    with pytest.raises(RunError, match="truing resume"):
        RunDirectory.create(tmp_path / "run")
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_lines_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    for step in (1, 2, 3):
        run.append("metrics.jsonl", {"step": step})
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"step": 4, "lo')
    run.truncate_lines("metrics.jsonl", 2)
    assert (run.path / "metrics.jsonl").read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n'
    run.close()
