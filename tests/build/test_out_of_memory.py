"""What is planned of a run that is about to start, and what is said when its memory runs out all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from truing.build import planning
from truing.build.chain import run
from truing.core.errors import OutOfMemory
from truing.models.roles import Role
from truing.planner.machine import Machine
from truing.recipe.load import recipe_from
from truing.training.memory_failure import naming
from truing.training.optimizer import Optimizer
from truing.training.progress import Silent
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

CPU_REFUSES = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


class Listening(Silent):
    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldFiles]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=30, demonstrations=40, pairs=40))
    write_base_model(folder / "model")
    return folder / "model", files


def recipe(world: tuple[Path, WorldFiles], **top: Any) -> Any:
    model, files = world
    return recipe_from(
        {
            "model": str(model),
            "adapter": {"use": "lora", "rank": 4},
            "objective": {"use": "sft"},
            "data": {"path": str(files.demonstrations), "max_length": 64},
            "batch": {"examples": 40, "micro_tokens": 4096},
            "optim": {"max_steps": 3},
            "samples": {"count": 0},
            **top,
        }
    )


def test_what_was_planned_lies_in_the_run_and_its_terms_add_up(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    run(recipe(world), tmp_path / "run", Silent())
    plan = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    assert plan["total_bytes"] == sum(plan["bytes"].values())
    assert plan["bytes"]["optimizer"] == 8 * plan["trained_parameters"]
    assert plan["fits"] is True
    assert plan["steps"] == 3
    assert plan["seconds"] > 0


def test_a_plan_that_does_not_fit_is_warned_of_and_trained_all_the_same(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "this_cpu", lambda: Machine("a very small machine", "cpu", 10**6))
    heard = Listening()
    assert run(recipe(world), tmp_path / "run", heard).is_dir()
    assert any("a very small machine has" in text and "run out of memory" in text for text in heard.warned)


def test_memory_that_runs_out_in_a_step_names_rows_term_and_remedy(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = Role.passes, 0

    def passes(self: Role, *arguments: Any, **named: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise RuntimeError(CPU_REFUSES)
        return real(self, *arguments, **named)

    monkeypatch.setattr(Role, "passes", passes)
    monkeypatch.setattr(planning, "resident_bytes", lambda: None)
    monkeypatch.setattr("truing.planner.memory.PROCESS", {"cpu": 0, "cuda": 0})
    monkeypatch.setattr("truing.planner.memory.MOST_HEAP", 0)
    with pytest.raises(OutOfMemory) as found:
        run(recipe(world), tmp_path / "run", Silent())
    said = str(found.value)
    assert found.value.exit_code == 4
    assert "out of memory in step 2, in a micro-batch of" in said
    assert f"{world[1].demonstrations}:" in said
    assert "are activations, the largest part" in said
    assert "The smallest change that keeps the batch of a step: --set batch.micro_tokens=" in said


def test_memory_that_runs_out_in_the_update_says_so(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Optimizer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Optimizer, "step", step)
    with pytest.raises(OutOfMemory, match="out of memory in the update of step 1"):
        run(recipe(world), tmp_path / "run", Silent())


@pytest.mark.parametrize(
    "failure",
    [RuntimeError(CPU_REFUSES), MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("std::bad_alloc")],
)
def test_every_way_of_saying_it_is_understood(failure: BaseException) -> None:
    with pytest.raises(OutOfMemory, match="out of memory while it rained"), naming("while it rained"):
        raise failure


def test_another_failure_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="sizes differ"), naming("while it rained"):
        raise RuntimeError("sizes differ")


def test_a_model_that_the_planner_does_not_know_is_trained_without_a_plan(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truing.planner.architecture.FAMILIES", {})
    run(recipe(world), tmp_path / "run", Silent())
    plan = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    assert plan["steps"] == 3
    assert "bytes" not in plan
