"""What a disk refuses is said with its name and its space, and room is looked for before it is needed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models

from truing.core.errors import MachineError, RunError
from truing.training import checkpoint
from truing.training.checkpoint import Checkpoint, check_space, complete
from truing.training.disk import check_room, described, on_disk
from truing.training.settings import CheckpointSettings


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**12, used=0, free=count))


def state(step: int, numbers: int = 1000) -> Checkpoint:
    return Checkpoint(step, {"weight.w": torch.zeros(numbers)}, {})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES, errno.EFBIG])
def test_the_message_names_the_cause_the_disk_and_the_space(tmp_path: Path, number: int) -> None:
    with pytest.raises(MachineError) as told, on_disk(tmp_path / "new" / "file"):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in str(told.value)
    assert described(tmp_path) in str(told.value)
    assert " free of " in described(tmp_path)
    assert told.value.exit_code == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_libraries_that_raise_anything_are_understood(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(MachineError, match="No space left"), on_disk(tmp_path):
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "full"))


def test_what_no_disk_said_stays_what_it_is(tmp_path: Path) -> None:
    for wrong in (ValueError("a fault of ours"), RunError("not a run")):
        with pytest.raises(type(wrong), match=str(wrong)), on_disk(tmp_path):
            raise wrong


def test_room_is_looked_for_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 10_000_000)
    check_room(tmp_path, 1_000_000, "checkpoints")
    with pytest.raises(MachineError, match=r"checkpoints need 9\.0 MB, and the disk at .* has 10\.0 MB free of"):
        check_room(tmp_path, 9_000_000, "checkpoints")
    check_space(tmp_path, 1_000_000, CheckpointSettings())
    with pytest.raises(MachineError, match=r"3 of 3\.0 MB"):
        check_space(tmp_path, 3_000_000, CheckpointSettings())


def test_a_full_disk_takes_more_checkpoints_than_the_settings_do_but_not_the_last_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CheckpointSettings(keep=4)
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, state(step), settings)
    free(monkeypatch, 0)
    with pytest.raises(MachineError, match="a checkpoint need"):
        checkpoint.save(tmp_path, state(5), settings)
    assert [folder.name for folder in complete(tmp_path)] == ["step-000003", "step-000004"]


def test_a_limit_of_space_takes_the_oldest(tmp_path: Path) -> None:
    settings = CheckpointSettings(keep=10, max_gb=15e-6)  # each takes a little over 4 kB
    for step in range(1, 7):
        checkpoint.save(tmp_path, state(step), settings)
    assert [folder.name for folder in complete(tmp_path)] == ["step-000004", "step-000005", "step-000006"]
    with pytest.raises(MachineError, match=r"checkpoint\.max_gb is 1\.5e-05"):
        check_space(tmp_path, 10_000, settings)


def test_damaged_checkpoints_do_not_count_among_those_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, state(step), CheckpointSettings(keep=3))
    for step in (2, 3):
        (tmp_path / f"step-00000{step}" / "state.safetensors").write_bytes(b"")
    found, complaints = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert (found.step, len(complaints)) == (1, 2)
    checkpoint.discard_after(tmp_path, found.step)
    checkpoint.save(tmp_path, state(2), CheckpointSettings())
    assert [folder.name for folder in complete(tmp_path)] == ["step-000001", "step-000002"]
    assert checkpoint.load_latest(tmp_path)[1] == []
