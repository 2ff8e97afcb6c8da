"""Ctrl-C and SIGTERM: what was done is saved, the codes are a shell's, and the run goes on to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.lives import result_of
from tests.faults.recipes import Ground
from truing.build.chain import resume, run
from truing.core.errors import RunError, Stopped
from truing.recipe.load import recipe_from
from truing.training.progress import Silent
from truing.training.stopping import stop_when_asked
from truing.training.trainer import Trainer


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.write(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_end_and_be_saved(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    recipe = recipe_from(ground.recipe(ground.stage("sft"), checkpoint={"every": 100}))
    run(recipe, tmp_path / "straight", Silent())
    real = Trainer._update

    def signalled(self: Trainer, step: Any, total: int) -> Any:
        if step.index == 1:
            os.kill(os.getpid(), number)
        return real(self, step, total)

    monkeypatch.setattr(Trainer, "_update", signalled)
    with pytest.raises(Stopped, match="stopped after step 2 of 3, which is saved") as stopped:
        run(recipe, tmp_path / "cut", Silent())
    assert stopped.value.exit_code == code
    assert [folder.name for folder in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.setattr(Trainer, "_update", real)
    resume(tmp_path / "cut", Silent())
    assert result_of(tmp_path / "cut") == result_of(tmp_path / "straight")


def test_a_second_signal_ends_it_now() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_when_asked() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is not None
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_resuming_refuses_other_data(ground: Ground, tmp_path: Path) -> None:
    recipe = ground.recipe(ground.stage("sft"))
    recipe["stages"][0]["data"]["path"] = str(tmp_path / "rows.jsonl")
    rows = ground.files.demonstrations.read_text(encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    run(recipe_from(recipe), tmp_path / "run", Silent())
    for file in (tmp_path / "run" / "final").iterdir():
        file.unlink()
    (tmp_path / "run" / "final").rmdir()
    (tmp_path / "rows.jsonl").write_text(rows.replace("the", "a"), encoding="utf-8")
    with pytest.raises(RunError, match=r"rows\.jsonl has changed since"):
        resume(tmp_path / "run", Silent())
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    resume(tmp_path / "run", Silent())
