"""Any number of ranks gives the loss and the gradient that one gives, to 1e-5, with copies of the weights or cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.build.runs import metrics
from tests.ranks.processes import on_ranks, train
from tests.ranks.recipes import furthest, recipe, weights_apart, write_ground
from truing.build.chain import run
from truing.recipe.load import recipe_from
from truing.training.progress import Silent

CLOSE = 1e-5
METHODS = ("sft", "reward", "dpo", "aot", "kto", "bco", "ppo", "grpo", "online_dpo")
CHECKPOINTING = {"precision": {"matmul": "highest", "dtype": "fp32", "gradient_checkpointing": True}}


class Case(NamedTuple):
    use: str
    lora: bool
    world: int
    shard: int | str
    more: dict[str, Any] = {}  # noqa: RUF012  never changed

    def __str__(self) -> str:
        kind = "lora" if self.lora else "full"
        return "-".join([self.use, kind, f"{self.world}x{self.shard}", *self.more])


QUICK = [
    Case("dpo", True, 2, 1),
    Case("kto", True, 2, 1),
    Case("grpo", True, 2, 1),
    Case("sft", False, 2, "all"),
    Case("reward", True, 2, "all"),
    Case("ppo", True, 2, "all"),
]
EVERY = [
    *(Case(use, lora, 2, shard) for use in METHODS for lora in (True, False) for shard in (1, "all")),
    *(Case(use, lora, 4, 2) for use in METHODS for lora in (True, False)),
    *(Case(use, False, 4, shard, {"examples": 2}) for use in ("sft", "kto", "ppo") for shard in (1, "all")),
    *(Case(use, use == "dpo", 2, "all", CHECKPOINTING) for use in ("sft", "dpo", "ppo")),
    Case("tr_dpo", True, 2, "all"),
    Case("sft", True, 3, "all", {"adapter": {"use": "lora", "rank": 4, "dora": True}}),
]
"""With fewer rows than ranks, with three ranks, and with what is computed otherwise than usual."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ground(tmp_path_factory.mktemp("ground"))


def assert_the_same(cases: list[Case], ground: Path, folder: Path) -> None:
    """Run each case alone and on its ranks, those with as many ranks in the same processes."""
    jobs = {str(c): recipe(ground, c.use, lora=c.lora, shard=c.shard, **c.more) for c in cases}
    for name, values in jobs.items():
        run(recipe_from(values), folder / f"{name}-alone", Silent())
    for world in {case.world for case in cases}:
        some = [(jobs[str(case)], folder / str(case)) for case in cases if case.world == world]
        assert on_ranks(world, train, some) == [0] * world
    for name in jobs:
        apart, where = furthest(folder / f"{name}-alone", folder / name)
        assert apart < CLOSE, f"{name}: {where}"
        assert weights_apart(folder / f"{name}-alone", folder / name) < CLOSE, name


def test_two_ranks_find_what_one_finds(ground: Path, tmp_path: Path) -> None:
    assert_the_same(QUICK, ground, tmp_path)


def test_four_ranks_with_fewer_rows_than_ranks_find_what_one_finds(ground: Path, tmp_path: Path) -> None:
    assert_the_same([Case("sft", False, 4, 2, {"examples": 3})], ground, tmp_path)


@pytest.mark.ranks
@pytest.mark.parametrize("case", EVERY, ids=str)
def test_every_method_finds_the_same(case: Case, ground: Path, tmp_path: Path) -> None:
    assert_the_same([case], ground, tmp_path)


@pytest.mark.ranks
@pytest.mark.parametrize("use", ["sft", "dpo"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_in_bfloat16_ranks_agree_to_its_rounding(use: str, lora: bool, ground: Path, tmp_path: Path) -> None:
    half = {"precision": {"dtype": "bf16", "matmul": "highest"}}
    values = recipe(ground, use, lora=lora, shard="all", **half)
    run(recipe_from(values), tmp_path / "alone", Silent())
    assert on_ranks(2, train, [(values, tmp_path / "two")]) == [0, 0]
    for row, other in zip(metrics(tmp_path / "alone"), metrics(tmp_path / "two"), strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=2e-2)
        assert other["grad_norm"] == pytest.approx(row["grad_norm"], rel=5e-2)
