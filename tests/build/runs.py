"""What tests of whole runs share: reading metrics, and cutting a run to see it end in the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from truing.build.chain import resume, run
from truing.recipe.load import recipe_from
from truing.training.progress import Silent
from truing.training.trainer import Trainer


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_a_cut_changes_nothing(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, objective: str, step: int, stage: str
) -> Path:
    """Run a recipe straight and, cut before a step of an objective, resumed; return the straight run.

    The weights must be the same bits and the losses of `stage`, a folder of the run, the same numbers.
    """
    straight = run(recipe_from(recipe), tmp_path / "straight", Silent())
    real = Trainer._update

    def dies(self: Trainer, prepared: Any, total: int) -> Any:
        if self.objective.name == objective and prepared.index == step:
            raise KeyboardInterrupt
        return real(self, prepared, total)

    monkeypatch.setattr(Trainer, "_update", dies)
    with pytest.raises(KeyboardInterrupt):
        run(recipe_from(recipe), tmp_path / "cut", Silent())
    monkeypatch.setattr(Trainer, "_update", real)
    assert len(metrics(tmp_path / "cut" / stage)) == step, "the run was cut where it should be"
    resumed = resume(tmp_path / "cut", Silent())
    name = next(file.name for file in straight.glob("*model.safetensors"))
    first, second = load_file(straight / name), load_file(resumed / name)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    losses = [[row["loss"] for row in metrics(tmp_path / which / stage)] for which in ("straight", "cut")]
    assert losses[0] == losses[1]
    return tmp_path / "straight"
