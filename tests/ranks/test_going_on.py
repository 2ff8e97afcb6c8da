"""A run goes on with another number of ranks, and with the same number as if nothing had happened."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.ranks.processes import go_on, on_ranks, train, train_until
from tests.ranks.recipes import furthest, recipe, weights_apart, write_ground
from truing.build.chain import resume, run
from truing.recipe.load import recipe_from
from truing.training.progress import Silent

CLOSE = 1e-5


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ground(tmp_path_factory.mktemp("ground"))


def test_a_sharded_run_goes_on_with_any_number_of_ranks(ground: Path, tmp_path: Path) -> None:
    values = recipe(ground, "sft", lora=False, shard="all")
    run(recipe_from(values), tmp_path / "alone", Silent())
    assert on_ranks(2, train, [(values, tmp_path / "two")]) == [0, 0]
    assert on_ranks(2, train_until, [(values, tmp_path / "cut")], 3) == [0, 0]
    shards = sorted(file.name for file in (tmp_path / "cut" / "checkpoints" / "step-000002" / "shards").iterdir())
    assert len(shards) == 2, "each rank has written its own"
    assert all(name.endswith(".safetensors") for name in shards)
    for folder in ("on-1", "on-2"):
        shutil.copytree(tmp_path / "cut", tmp_path / folder)
    resume(tmp_path / "on-1", Silent())
    assert on_ranks(2, go_on, [tmp_path / "on-2"]) == [0, 0]
    assert furthest(tmp_path / "alone", tmp_path / "on-1")[0] < CLOSE
    assert weights_apart(tmp_path / "alone", tmp_path / "on-1") < CLOSE
    assert furthest(tmp_path / "two", tmp_path / "on-2")[0] == 0.0
    assert weights_apart(tmp_path / "two", tmp_path / "on-2") == 0.0


@pytest.mark.ranks
@pytest.mark.parametrize("shard", [1, "all"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("use", ["dpo", "kto", "ppo", "tr_dpo"])
def test_every_kind_of_run_goes_on(use: str, lora: bool, shard: int | str, ground: Path, tmp_path: Path) -> None:
    if use == "tr_dpo" and not lora:
        pytest.skip("a reference that moves takes an adapter")
    values = recipe(ground, use, lora=lora, shard=shard)
    run(recipe_from(values), tmp_path / "alone", Silent())
    assert on_ranks(2, train, [(values, tmp_path / "two")]) == [0, 0]
    assert on_ranks(2, train_until, [(values, tmp_path / "cut")], 3) == [0, 0]
    for world in (1, 2, 4):
        folder = tmp_path / f"on-{world}"
        shutil.copytree(tmp_path / "cut", folder)
        if world == 1:
            resume(folder, Silent())
        else:
            assert on_ranks(world, go_on, [folder]) == [0] * world
        apart, where = furthest(tmp_path / "alone", folder)
        assert apart < CLOSE, f"on {world}: {where}"
        assert weights_apart(tmp_path / "alone", folder) < CLOSE
    assert furthest(tmp_path / "two", tmp_path / "on-2")[0] == 0.0
    assert weights_apart(tmp_path / "two", tmp_path / "on-2") == 0.0
