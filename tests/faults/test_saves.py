"""A save that is hurt, wherever it is, leaves the checkpoint before it, or has made the next one; never half of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.saves import HALF, in_its_own_process, killed, refused


def test_a_save_killed_at_any_operation_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    hurt = in_its_own_process(killed, tmp_path, "nothing")
    kinds = {each.what.split()[0] for each in hurt}
    assert {"mkdir", "open", "write", "fsync", "replace", "unlink", "rmdir"} <= kinds, "every kind was killed"
    assert all(each.found in (each.before, each.before + 1) for each in hurt)
    assert all(each.kept >= 2 for each in hurt)
    assert any(each.found == each.before + 1 for each in hurt), "the last ones came after the rename"


def test_a_saver_that_is_not_atomic_is_noticed(tmp_path: Path) -> None:
    hurt = in_its_own_process(killed, tmp_path, "saves_in_place")
    assert hurt[-1].found == HALF


@pytest.mark.parametrize("error", ["ENOSPC", "EROFS", "EIO"])
def test_a_save_refused_at_any_operation_leaves_a_whole_checkpoint(tmp_path: Path, error: str) -> None:
    hurt = in_its_own_process(refused, tmp_path, error)
    assert len(hurt) >= 10
    assert all(each.found in (each.before, each.before + 1) for each in hurt)
    assert all(each.kept >= 2 for each in hurt)
    assert all(each.what.startswith("cannot write ") and " free of " in each.what for each in hurt)
