"""Rollouts on a server that is given the policy's weights: it follows, and where it does not the run says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.build.runs import metrics
from tests.rl.vllm_server import VllmServer, serving
from truing.build.chain import resume, run
from truing.core.errors import InputError, MachineError, OffPolicy
from truing.recipe.load import recipe_from
from truing.rl import completion_server
from truing.training.progress import Silent
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

LORA = {"use": "lora", "rank": 4}
FULL = "none"
REWARD = """
def words(prompts, completions, **columns):
    return [len(set(text.split())) / 10 for text in completions]
"""
ROUNDING = 1e-4
"""Nats a token; two ways of computing the same float32 model differ by less."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldFiles]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=40, pairs=60))
    write_base_model(folder / "model")
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    return folder / "model", files


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_server, "FIRST_PAUSE", 0.01)


def recipe(world: tuple[Path, WorldFiles], server: VllmServer, adapter: Any = LORA, **more: Any) -> dict[str, Any]:
    """Three steps of GRPO, a rollout each, at a rate that moves the policy."""
    rollout = more.pop("rollout", {})
    address = {"url": server.url, "model": "policy", "retries": 1, **rollout.pop("server", {})}
    return {
        "model": str(world[0]),
        "adapter": adapter,
        "objective": {"use": "grpo"},
        "data": {"path": str(world[1].prompts), "max_length": 24, "limit": 12},
        "rollout": {
            "rewards": [f"{world[0].parent / 'rewards.py'}:words"],
            "max_new_tokens": 8,
            "server": address,
            **rollout,
        },
        "optim": {"lr": 3e-2 if adapter != FULL else 3e-3, "max_steps": 3, "warmup": 0},
        "samples": {"count": 0},
        "batch": {"examples": 4, "micro_tokens": 512},
        "precision": {"matmul": "highest"},
        "checkpoint": {"every": 1},
        **more,
    }


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_an_adapter_is_brought_to_the_server_before_each_rollout(
    world: tuple[Path, WorldFiles], tmp_path: Path, temperature: float
) -> None:
    with serving(world[0]) as server:
        made = recipe(world, server, rollout={"temperature": temperature})
        run(recipe_from(made), tmp_path / "run", Silent())
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3
    assert all(row["rollout/logprob_gap"] < ROUNDING for row in rows)
    assert all(row["val/ratio"] == pytest.approx(1.0, abs=1e-5) for row in rows), "log-probs are the policy's own"
    assert rows[-1]["objective/kl"] > 0.01, "the policy has moved"
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    assert server.paths() == [load, unload, load, unload, load, unload]
    names = [body["lora_name"] for path, body in server.orders if path == load]
    assert len(set(names)) == 3, "prompts are cached by the name of an adapter"
    sampled = {body["model"] for path, body in server.orders if path == "/v1/completions"}
    assert sampled == set(names)
    assert not list((tmp_path / "run" / "served").iterdir())


def test_full_weights_are_brought_and_the_cache_is_reset(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    with serving(world[0]) as server:
        final = run(recipe_from(recipe(world, server, FULL)), tmp_path / "run", Silent())
        held = dict(server.loaded.module.named_parameters())
    rows = metrics(tmp_path / "run")
    assert all(row["rollout/logprob_gap"] < ROUNDING for row in rows)
    assert server.paths() == ["/collective_rpc", "/reset_prefix_cache"] * 3
    trained = load_file(final / "model.safetensors")
    assert any(not torch.equal(trained[name], held[name]) for name in trained), "it has the policy of the last rollout"


@pytest.mark.parametrize(("adapter", "loads"), [(LORA, 0), (LORA, 1), (FULL, 0)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_server_that_forgets_what_it_was_given_ends_the_run(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any, loads: int, temperature: float
) -> None:
    with serving(world[0], forgets_from=loads) as server:
        made = recipe(world, server, adapter, rollout={"temperature": temperature})
        with pytest.raises(OffPolicy, match="the weights that the stage began with"):
            run(recipe_from(made), tmp_path / "run", Silent())
    assert len(metrics(tmp_path / "run")) == 1, "before anything is learned from such samples"


def test_a_small_step_is_seen_too(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    with serving(world[0], forgets_from=0) as server:
        made = recipe(world, server, optim={"lr": 1e-4, "max_steps": 4, "warmup": 0})
        with pytest.raises(OffPolicy, match="the weights that the stage began with"):
            run(recipe_from(made), tmp_path / "run", Silent())
    assert metrics(tmp_path / "run")[-1]["rollout/logprob_gap"] < 0.01


def test_a_cache_that_is_not_reset_is_seen(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    data = {"path": str(world[1].prompts), "max_length": 24, "limit": 4}
    with serving(world[0], keeps_cache=True) as server, pytest.raises(OffPolicy, match="stage began with"):
        run(recipe_from(recipe(world, server, FULL, data=data)), tmp_path / "run", Silent())


def test_another_model_ends_the_run_before_its_first_step(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_base_model(other, seed=5)
    with serving(other) as server, pytest.raises(OffPolicy, match=r"other weights.*logprob_gap 0\.01.*--dtype"):
        run(recipe_from(recipe(world, server, rollout={"server": {"logprob_gap": 0.01}})), tmp_path / "run", Silent())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("adapter", "settings", "expected"),
    [
        (LORA, {"updates": False}, r"load_lora_adapter: refused with status 404.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (LORA, {"most_rank": 2}, r"rank 4 is greater than max_lora_rank 2.*--enable-lora.*--max-lora-rank of .* 4"),
        (FULL, {"dev_mode": False}, r"collective_rpc: refused with status 404.*VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_what_the_server_was_not_started_with_is_named(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any, settings: dict[str, Any], expected: str
) -> None:
    with serving(world[0], **settings) as server, pytest.raises(InputError, match=expected):
        run(recipe_from(recipe(world, server, adapter)), tmp_path / "run", Silent())
    assert len(server.paths()) == 1, "a refusal is not tried again"


def test_a_folder_is_named_as_the_server_sees_it(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(tmp_path / "shared")
    places = {"folder": str(tmp_path / "shared"), "seen_as": str(tmp_path / "mounted")}
    with serving(world[0]) as server:
        run(recipe_from(recipe(world, server, rollout={"server": places})), tmp_path / "run", Silent())
    paths = [body["lora_path"] for path, body in server.orders if path == "/v1/load_lora_adapter"]
    assert all(path.startswith(str(tmp_path / "mounted")) for path in paths)
    assert not list((tmp_path / "shared").iterdir())


def test_a_run_whose_server_dies_goes_on_with_another(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    with serving(world[0], dies_after=14) as server:
        made = recipe(world, server)
        with pytest.raises(MachineError, match="the server failed in 2 tries"):
            run(recipe_from(made), tmp_path / "run", Silent())
    done = len(metrics(tmp_path / "run"))
    assert 0 < done < 3
    with serving(world[0]) as another:
        file = tmp_path / "run" / "recipe.yaml"
        file.write_text(file.read_text(encoding="utf-8").replace(server.url, another.url), encoding="utf-8")
        resume(tmp_path / "run", Silent())
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3
    assert rows[-1]["rollout/logprob_gap"] < ROUNDING, "the first thing that it was given is the policy as it was"
    assert len(another.paths()) == 2 * (3 - done)


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ({**LORA, "dora": True}, "vLLM serves no adapter with adapter.dora"),
        ({**LORA, "modules_to_save": ["lm_head"]}, "vLLM serves no adapter with adapter.modules_to_save"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve_is_refused_before_anything_is_written(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: dict[str, Any], expected: str
) -> None:
    with serving(world[0]) as server, pytest.raises(InputError, match=expected):
        run(recipe_from(recipe(world, server, adapter)), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()
    assert server.orders == []


def test_only_vllm_can_follow_a_policy(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    with serving(world[0]) as server:
        made = recipe(world, server, rollout={"server": {"kind": "llama.cpp"}})
    with pytest.raises(InputError, match=r"rollout\.server\.kind"):
        recipe_from(json.loads(json.dumps(made)))
