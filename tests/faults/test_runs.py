"""A run that is killed, or whose disk fails, goes on to the very bits of one that was left alone.

The quick tests cut one chain at some of its points; those marked `faults` cut every method at every point there is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.lives import live, lives, result_of
from tests.faults.recipes import Ground

METHODS = ("sft", "reward", "dpo", "kto", "bco", "ppo", "grpo")
EVERY_POINT = range(1, 400)
"""The n-th life ends at its n-th point, so that each file operation of a start, a step and an end has its turn."""
SOME_POINTS = (9, 44, 57, 66)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.write(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def untouched(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a recipe comes to when nothing happens to it."""

    @functools.cache
    def of(methods: tuple[str, ...], lora: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        recipe = ground.recipe(*(ground.stage(method) for method in methods), lora=lora)
        output = tmp_path_factory.mktemp("untouched") / "run"
        life = live(recipe, output)
        assert life.kind == "done", life
        return recipe, result_of(output)

    return of


CHAIN = ("sft", "dpo")


def test_a_killed_chain_ends_in_the_same_bits(untouched: Any, tmp_path: Path) -> None:
    recipe, truth = untouched(CHAIN, True)
    places = lives(recipe, tmp_path / "run", SOME_POINTS)
    assert len(places) == len(SOME_POINTS), "every kill has happened"
    assert len(set(places)) >= 3, "at several places"
    assert result_of(tmp_path / "run") == truth


@pytest.mark.parametrize("kind", ["update", "backward"])
def test_a_run_killed_in_every_step_ends_in_the_same_bits(untouched: Any, tmp_path: Path, kind: str) -> None:
    """Each life makes a step, and is killed in the next one: before its update, or between two micro-batches."""
    recipe, truth = untouched(("kto",), True)
    at = {"update": 2, "backward": 4}[kind]
    places = lives(recipe, tmp_path / "run", [at] * 20, kinds=(kind,))
    assert places == [kind] * 2, "three steps have two between them"
    assert result_of(tmp_path / "run") == truth


def test_a_run_killed_in_every_rollout_ends_in_the_same_bits(untouched: Any, tmp_path: Path) -> None:
    recipe, truth = untouched(("ppo",), True)
    places = lives(recipe, tmp_path / "run", [1, 1, 2], kinds=("sample", "reward"))
    assert len(places) == 3
    assert result_of(tmp_path / "run") == truth


def test_a_disk_that_fills_up_costs_nothing_that_was_saved(untouched: Any, tmp_path: Path) -> None:
    recipe, truth = untouched(("kto",), True)
    told = lives(recipe, tmp_path / "run", (5, 38, 44), harm="ENOSPC")
    assert_they_say_what_failed(told, 3)
    assert result_of(tmp_path / "run") == truth


def test_writes_that_do_half_of_what_is_asked_change_nothing(untouched: Any, tmp_path: Path) -> None:
    """The system may write less than it is given, without an error; whoever writes goes on with the rest."""
    recipe, truth = untouched(CHAIN, True)
    life = live(recipe, tmp_path / "run", harm="short")
    assert life.kind == "done", life
    assert life.told.count("write") > 100
    assert result_of(tmp_path / "run") == truth


def test_a_resume_that_forgets_a_random_state_is_noticed(untouched: Any, tmp_path: Path) -> None:
    recipe, truth = untouched(("kto",), True)
    lives(recipe, tmp_path / "run", [2], kinds=("update",), sabotage="forgets_torch")
    assert result_of(tmp_path / "run")["final"] != truth["final"]


@pytest.mark.faults
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("methods", [*((method,) for method in METHODS), CHAIN], ids="-".join)
def test_killed_at_every_point_every_method_ends_in_the_same_bits(
    untouched: Any, tmp_path: Path, methods: tuple[str, ...], lora: bool
) -> None:
    recipe, truth = untouched(methods, lora)
    places = lives(recipe, tmp_path / "run", EVERY_POINT)
    assert len(places) > 30
    kinds = {place.split()[0] for place in places}
    assert {"open", "write", "fsync", "replace", "mkdir", "backward", "update"} <= kinds
    assert result_of(tmp_path / "run") == truth


@pytest.mark.faults
@pytest.mark.parametrize("harm", ["ENOSPC", "EROFS", "EIO"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_failing_at_every_operation_the_disk_costs_nothing_that_was_saved(
    untouched: Any, tmp_path: Path, lora: bool, harm: str
) -> None:
    recipe, truth = untouched(CHAIN, lora)
    told = lives(recipe, tmp_path / "run", EVERY_POINT, harm=harm)
    assert_they_say_what_failed(told, 30)
    assert result_of(tmp_path / "run") == truth


@pytest.mark.faults
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_short_write_anywhere_changes_nothing(untouched: Any, tmp_path: Path, lora: bool) -> None:
    recipe, truth = untouched(("kto",), lora)
    for at in EVERY_POINT:
        life = live(recipe, tmp_path / f"run-{at}", at, harm="short")
        assert life.kind == "done", (at, life)
        assert result_of(tmp_path / f"run-{at}") == truth, at
        if len(life.told) < at:
            return


def assert_they_say_what_failed(told: Sequence[Any], at_least: int) -> None:
    assert len(told) >= at_least
    for exit_code, message in told:
        assert exit_code == 4
        assert message.startswith("cannot write ")
        assert " free of " in message
