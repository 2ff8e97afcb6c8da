"""The main job end to end on a tiny model: SFT then DPO, resume, merge, and mistakes with their exit codes."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.build.runs import assert_a_cut_changes_nothing, metrics
from truing.build.chain import run
from truing.build.load_result import open_result
from truing.build.merge import merge_run
from truing.cli.main import cli
from truing.core.errors import PreflightFailed, TruingError
from truing.recipe.load import load_recipe, recipe_from
from truing.training.progress import Silent
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

TOKENS = torch.tensor([[1, 7, 9, 30, 12, 45, 8]])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldFiles]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=60, pairs=60))
    write_base_model(folder / "model")
    return folder / "model", files


def values(world: tuple[Path, WorldFiles], adapter: Any, **top: Any) -> dict[str, Any]:
    model, files = world
    return {
        "model": str(model),
        "adapter": adapter,
        "samples": {"count": 1, "max_new_tokens": 4},
        "batch": {"examples": 8, "micro_tokens": 128},
        "checkpoint": {"every": 2},
        "precision": {"matmul": "highest"},
        "stages": [
            {
                "objective": {"use": "sft"},
                "data": {"path": str(files.demonstrations), "max_length": 48},
                "optim": {"lr": 1e-3, "max_steps": 5},
            },
            {
                "objective": {"use": "dpo"},
                "data": {"path": str(files.pairs), "max_length": 48, "holdout": 0.2},
                "optim": {"lr": 1e-3, "max_steps": 5},
            },
        ],
        **top,
    }


LORA = {"use": "lora", "rank": 4}
LEARNS = {"lr": 5e-3, "max_steps": 12}
"""Two passes over the pairs that are trained on, six steps each; a batch of the second has been met."""


@pytest.mark.parametrize("adapter", [LORA, "none"], ids=["lora", "full"])
def test_a_chain_trains_and_its_result_loads_elsewhere(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any
) -> None:
    output = tmp_path / "chain"
    recipe = values(world, adapter)
    for stage in recipe["stages"]:
        stage["optim"] = LEARNS
    final = run(recipe_from(recipe), output, Silent())
    sft, dpo = metrics(output / "1-sft"), metrics(output / "2-dpo")
    assert [row["step"] for row in sft] == list(range(1, 13))
    assert sft[-1]["loss"] < sft[0]["loss"]
    assert dpo[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert all(row["rewards/margins"] > 0 for row in dpo[6:])
    assert "eval_loss" in dpo[-1]
    ours = open_result(output)
    with torch.no_grad(), ours.model.stock_attention() as module:
        expected = module(TOKENS).logits
        if adapter == "none":
            other = AutoModelForCausalLM.from_pretrained(final)
        else:
            other = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world[0]), final)
        torch.testing.assert_close(other(TOKENS).logits, expected, atol=1e-5, rtol=0)
    if adapter != "none":
        assert "logits differ by at most" in merge_run(output, tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        with torch.no_grad():
            torch.testing.assert_close(merged(TOKENS).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("adapter", [LORA, "none"], ids=["lora", "full"])
def test_a_resumed_run_ends_with_the_same_bits(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = values(world, adapter)
    assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective="dpo", step=3, stage="2-dpo")


def test_a_run_resumed_in_its_second_pass_ends_with_the_same_bits(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the reference's log-probs are kept ones; they are those of the first pass, whoever asks again."""
    recipe = values(world, LORA, checkpoint={"every": 4})
    recipe["stages"] = [{**recipe["stages"][1], "optim": {"lr": 1e-3, "max_steps": 14}}]
    assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective="dpo", step=10, stage=".")
    assert list((tmp_path / "cut" / "reference").glob("*.safetensors"))


def test_a_finished_run_that_is_resumed_stays_as_it_is_and_gets_its_report(
    world: tuple[Path, WorldFiles], tmp_path: Path
) -> None:
    """A process that is killed between its result and its report leaves one without the other."""
    recipe = values(world, LORA)
    recipe["stages"] = [{**recipe["stages"][0], "optim": {"lr": 1e-3, "max_steps": 2}}]
    final = run(recipe_from(recipe), tmp_path / "run", Silent())
    before = {file.name: file.read_bytes() for file in final.iterdir()}
    result = CliRunner().invoke(cli, ["resume", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "is finished" in result.stderr + result.output
    assert (tmp_path / "run" / "report.html").is_file()
    assert {file.name: file.read_bytes() for file in final.iterdir()} == before


def test_dropout_does_not_trip_the_preflight(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    """DPO goes on from an adapter that drops; the value its first loss must have is that without dropout."""
    run(recipe_from(values(world, {**LORA, "dropout": 0.1})), tmp_path / "chain", Silent())
    assert metrics(tmp_path / "chain" / "2-dpo")[0]["loss"] != pytest.approx(math.log(2), abs=1e-9)


def test_a_later_stage_beyond_the_context_is_found_at_once(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    recipe = values(world, LORA)
    recipe["stages"][1]["data"]["max_length"] = 100_000
    with pytest.raises(TruingError, match=r"stage dpo: data.max_length is 100000"):
        run(recipe_from(recipe), tmp_path / "chain", Silent())
    assert not (tmp_path / "chain").exists()


@pytest.mark.parametrize("chain", [True, False], ids=["from an adapter", "from the base"])
def test_a_reference_that_moves_is_the_policy_each_time_and_survives_a_cut(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: bool
) -> None:
    recipe = values(world, LORA, checkpoint={"every": 4})
    moving = {**recipe["stages"][1], "objective": {"use": "tr_dpo", "every": 3}, "optim": {"lr": 1e-3, "max_steps": 8}}
    recipe["stages"] = [recipe["stages"][0], moving] if chain else [moving]
    stage = "2-tr_dpo" if chain else "."
    straight = assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective="tr_dpo", step=5, stage=stage)
    losses = [row["loss"] for row in metrics(straight / stage)]
    fresh = [n for n, loss in enumerate(losses) if loss == pytest.approx(math.log(2), abs=1e-6)]
    assert fresh == [0, 3, 6], "after every third step policy and reference are one again"


def test_a_reference_cannot_move_without_an_adapter(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    recipe = values(world, "none")
    recipe["stages"][1]["objective"] = {"use": "tr_dpo"}
    recipe["stages"] = recipe["stages"][1:]
    with pytest.raises(TruingError, match="takes an adapter"):
        run(recipe_from(recipe), tmp_path / "run", Silent())


def test_the_size_of_a_micro_batch_does_not_change_the_run(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    for name, size in (("small", 1), ("large", 4096)):
        recipe = recipe_from(values(world, LORA, batch={"examples": 8, "micro_tokens": size}))
        run(recipe, tmp_path / name, Silent())
    for stage in ("1-sft", "2-dpo"):
        small, large = metrics(tmp_path / "small" / stage), metrics(tmp_path / "large" / stage)
        for a, b in zip(small, large, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_checkpointing_recomputes_with_the_adapter(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    for name, on in (("plain", False), ("checkpointed", True)):
        recipe = values(world, LORA, precision={"matmul": "highest", "gradient_checkpointing": on})
        run(recipe_from(recipe), tmp_path / name, Silent())
    plain, checkpointed = (metrics(tmp_path / name / "2-dpo") for name in ("plain", "checkpointed"))
    assert [r["loss"] for r in plain] == pytest.approx([r["loss"] for r in checkpointed], abs=1e-6)


def test_a_wrong_reference_is_refused_before_the_first_update(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The field's classic error: the base as reference of a stage that began from an adapter."""
    from truing.build import policy

    real = policy.AdapterOverBase
    monkeypatch.setattr(
        policy, "AdapterOverBase", lambda m, a, name, drops=False: real(m, a, None if name == "reference" else name)
    )
    recipe = values(world, LORA)
    recipe["stages"][0]["optim"]["lr"] = 1e-2
    with pytest.raises(PreflightFailed, match="reference is not the policy") as stopped:
        run(recipe_from(recipe), tmp_path / "run", Silent())
    assert stopped.value.exit_code == 3
    assert not (tmp_path / "run" / "final").exists()


def test_a_newcomers_loss_trains(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    source = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = source.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) < 30
    (tmp_path / "my_loss.py").write_text(code, encoding="utf-8")
    recipe = values(world, LORA)
    loss = {"use": f"{tmp_path}/my_loss.py:SquaredHinge", "beta": 0.2}
    recipe["stages"][1] |= {"objective": loss, "optim": LEARNS}
    run(recipe_from(recipe), tmp_path / "run", Silent())
    losses = [row["loss"] for row in metrics(tmp_path / "run" / "2-SquaredHinge")]
    assert losses[0] == pytest.approx(1.0, abs=1e-6)
    assert all(loss < losses[0] for loss in losses[6:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "nowhere"}, "nowhere"),
        ({"adapter": {"use": "lora", "targets": ["nothing_like_it"]}}, "nothing_like_it"),
        ({"stages": [{"objective": {"use": "dop"}, "data": {"path": "PAIRS"}}]}, "did you mean 'dpo'"),
        ({"stages": [{"objective": {"use": "dpo"}, "data": {"path": "DEMOS"}}]}, "dpo needs"),
        ({"stages": [{"objective": {"use": "sft"}, "data": {"path": "missing.jsonl"}}]}, "missing.jsonl"),
        ({"stages": [{"objective": {"use": "sft"}, "data": {"path": "DEMOS", "max_length": 999}}]}, "positions for 64"),
    ],
)
def test_a_mistake_ends_with_code_2_and_writes_nothing(
    world: tuple[Path, WorldFiles], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    text = yaml.safe_dump({**values(world, LORA), **change})
    text = text.replace("PAIRS", str(world[1].pairs)).replace("DEMOS", str(world[1].demonstrations))
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TruingError, match=message) as told:
        run(load_recipe(file), tmp_path / "run", Silent())
    assert told.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_trained_tokens_and_writes_nothing(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values(world, LORA)), encoding="utf-8")
    shown = CliRunner().invoke(cli, ["train", str(file), "--dry-run", "--output", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    assert "⟦" in shown.output
    assert "5 steps" in shown.output
    assert not (tmp_path / "run").exists()


def test_an_output_in_use_is_refused(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    recipe = recipe_from(values(world, LORA))
    run(recipe, tmp_path / "run", Silent())
    before = (tmp_path / "run" / "final" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(TruingError, match="already holds a run"):
        run(recipe, tmp_path / "run", Silent())
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").read_bytes() == before
    shutil.rmtree(tmp_path / "run")
