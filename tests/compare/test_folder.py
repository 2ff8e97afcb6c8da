"""The folder of a comparison: whose it is, and when it takes other arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from truing.compare.folder import take
from truing.core.errors import RunError

ARGUMENTS = {"arguments": {"methods": ("sft", "dpo"), "seeds": 1}, "data_sha256": {"pairs.json": "abc"}}


def begun(path: Path) -> None:
    folder, lock = take(path, ARGUMENTS)
    lock.close()
    folder.run("sft", 0).mkdir()


def test_the_same_arguments_take_up_what_is_there(tmp_path: Path) -> None:
    begun(tmp_path / "out")
    folder, lock = take(tmp_path / "out", ARGUMENTS)
    lock.close()
    assert folder.run("sft", 0).is_dir()


def test_other_arguments_are_refused_by_the_one_that_differs(tmp_path: Path) -> None:
    begun(tmp_path / "out")
    with pytest.raises(RunError, match="another arguments seeds: 1 there, 2 here; give another --output"):
        take(tmp_path / "out", {**ARGUMENTS, "arguments": {"methods": ["sft", "dpo"], "seeds": 2}})
    with pytest.raises(RunError, match=r"another data_sha256 pairs\.json: abc there, xyz here"):
        take(tmp_path / "out", {**ARGUMENTS, "data_sha256": {"pairs.json": "xyz"}})


def test_what_has_not_begun_to_train_takes_other_arguments_and_plans_anew(tmp_path: Path) -> None:
    folder, lock = take(tmp_path / "out", ARGUMENTS)
    folder.keep("plan.json", {"budget": None, "courses": {}})
    lock.close()
    folder, lock = take(tmp_path / "out", {**ARGUMENTS, "data_sha256": {}})
    lock.close()
    assert folder.kept("plan.json") is None


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text", encoding="utf-8")
    with pytest.raises(RunError, match=r"not empty \(it has thesis\.tex\)"):
        take(tmp_path, ARGUMENTS)
    assert [one.name for one in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    _, lock = take(tmp_path / "out", ARGUMENTS)
    with pytest.raises(RunError, match="is being written by process"):
        take(tmp_path / "out", ARGUMENTS)
    lock.close()
