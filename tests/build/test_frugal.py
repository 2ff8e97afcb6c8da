"""Runs with optimizers that save memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.build.runs import assert_a_cut_changes_nothing, metrics
from tests.faults.recipes import Ground
from truing.build.chain import run
from truing.core.errors import RecipeError
from truing.recipe.load import recipe_from
from truing.training.progress import Silent


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.write(tmp_path_factory.mktemp("ground"))


def in_backward(ground: Ground, **more: Any) -> dict[str, Any]:
    stage = ground.stage("dpo")
    optim = {**stage["optim"], "max_grad_norm": None, **more}
    return ground.recipe({**stage, "optim": optim}, lora=False, batch={"examples": 4, "micro_tokens": 4096})


def test_updates_in_the_backward_pass_make_the_same_run(ground: Ground, tmp_path: Path) -> None:
    finals = [
        run(recipe_from(in_backward(ground, **more)), tmp_path / str(number), Silent())
        for number, more in enumerate(({}, {"in_backward": True}))
    ]
    first, second = (load_file(final / "model.safetensors") for final in finals)
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = [metrics(tmp_path / str(number)) for number in range(2)]
    assert [row["grad_norm"] for row in rows[0]] == pytest.approx([row["grad_norm"] for row in rows[1]], rel=1e-5)


@pytest.mark.parametrize("more", [{"in_backward": True}, {"state": "8bit"}], ids=["in backward", "8bit"])
def test_a_cut_run_with_a_frugal_optimizer_ends_in_the_same_bits(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    recipe = in_backward(ground, **more)
    assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective="dpo", step=2, stage=".")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": {"examples": 4, "micro_tokens": 16}}, r"some here have \d.*raise batch.micro_tokens to"),
        ({"adapter": {"use": "lora"}}, "an adapter has few"),
        ({"objective": {"use": "grpo"}}, "cut as completions come"),
    ],
    ids=["several", "adapter", "rollouts"],
)
def test_where_a_step_has_no_single_backward_pass_it_is_refused(
    ground: Ground, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    recipe = in_backward(ground, in_backward=True)
    if "objective" in change:
        stage = ground.stage("grpo")
        stage["optim"] |= {"in_backward": True, "max_grad_norm": None}
        recipe["stages"] = [stage]
    with pytest.raises(RecipeError, match=words):
        run(recipe_from({**recipe, **{k: v for k, v in change.items() if k != "objective"}}), tmp_path / "r", Silent())
