"""Reward models end to end on a tiny model: trained, saved as others read them, and asked for scores."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.build.runs import metrics
from truing.build.chain import run
from truing.build.load_result import check_members, open_result, open_scorer
from truing.build.merge import merge_run
from truing.build.score import Scored, calibration_error, describe_members, wilson
from truing.cli.main import cli
from truing.core.errors import InputError, RunError
from truing.data.dataset import load
from truing.data.settings import DataSettings
from truing.recipe.load import recipe_from
from truing.training.progress import Silent
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

LORA = {"use": "lora", "rank": 4}
TOKENS = torch.tensor([[1, 7, 9, 30, 12, 45, 8]])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldFiles]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=40, pairs=80))
    write_base_model(folder / "model")
    return folder / "model", files


def reward_stage(files: WorldFiles, **more: Any) -> dict[str, Any]:
    return {
        "objective": {"use": "reward"},
        "data": {"path": str(files.pairs), "max_length": 48, "holdout": 0.2},
        "optim": {"lr": 3e-3, "max_steps": 12},
        **more,
    }


def recipe(world: tuple[Path, WorldFiles], stages: list[dict[str, Any]], adapter: Any, **top: Any) -> dict[str, Any]:
    return {
        "model": str(world[0]),
        "adapter": adapter,
        "samples": {"count": 0},
        "batch": {"examples": 8, "micro_tokens": 128},
        "precision": {"matmul": "highest"},
        "stages": stages,
        **top,
    }


def sft_stage(files: WorldFiles) -> dict[str, Any]:
    return {
        "objective": {"use": "sft"},
        "data": {"path": str(files.demonstrations), "max_length": 48},
        "optim": {"lr": 1e-3, "max_steps": 3},
    }


@pytest.mark.parametrize("adapter", [LORA, "none"], ids=["lora", "full"])
def test_a_reward_model_follows_sft_and_loads_elsewhere(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any
) -> None:
    output = tmp_path / "chain"
    final = run(recipe_from(recipe(world, [sft_stage(world[1]), reward_stage(world[1])], adapter)), output, Silent())
    rows = metrics(output / "2-reward")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "a zero head scores nothing"
    assert rows[0]["accuracy"] == 0.5
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["eval_margin"] > 0
    ours = open_scorer(output)
    with torch.no_grad(), ours.model.stock_attention() as module:
        expected = module(TOKENS).logits
        if adapter == "none":
            other = AutoModelForSequenceClassification.from_pretrained(final)
        else:
            base = AutoModelForSequenceClassification.from_pretrained(world[0], num_labels=1)
            other = PeftModel.from_pretrained(base, final)
        assert expected.abs().min() > 1e-4
        torch.testing.assert_close(other(TOKENS).logits, expected, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="reward model"):
        open_result(output)
    if adapter != "none":
        merge_run(output, tmp_path / "merged")
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        with torch.no_grad():
            torch.testing.assert_close(merged(TOKENS).logits, expected, atol=1e-5, rtol=0)


def test_the_policy_after_a_reward_stage_is_that_before_it(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    dpo = {**reward_stage(world[1]), "objective": {"use": "dpo"}, "optim": {"lr": 1e-4, "max_steps": 2}}
    stages = [sft_stage(world[1]), reward_stage(world[1], optim={"lr": 1e-3, "max_steps": 2}), dpo]
    run(recipe_from(recipe(world, stages, LORA)), tmp_path / "chain", Silent())
    assert "1-sft" in (tmp_path / "chain" / "3-dpo" / "recipe.yaml").read_text(encoding="utf-8")
    assert open_result(tmp_path / "chain").adapters is not None


def test_a_reward_model_on_another_base_leaves_the_policy_alone(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(world[0], other)
    short = {"lr": 1e-4, "max_steps": 2}
    stages = [
        sft_stage(world[1]),
        reward_stage(world[1], optim=short, model=str(other)),
        {**reward_stage(world[1], optim=short), "objective": {"use": "dpo"}},
    ]
    run(recipe_from(recipe(world, stages, LORA)), tmp_path / "chain", Silent())
    config = json.loads((tmp_path / "chain" / "final" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(world[0])
    assert "1-sft" in (tmp_path / "chain" / "3-dpo" / "recipe.yaml").read_text(encoding="utf-8")


def test_the_micro_batch_changes_nothing(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    for name, size in (("one", 1), ("all", 4096)):
        values = recipe(world, [reward_stage(world[1])], LORA, batch={"examples": 8, "micro_tokens": size})
        run(recipe_from(values), tmp_path / name, Silent())
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "all"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3, abs=1e-6)


def test_scores_are_printed_and_written(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    run(recipe_from(recipe(world, [reward_stage(world[1])], LORA)), tmp_path / "run", Silent())
    output = tmp_path / "scores.jsonl"
    arguments = ["score", str(tmp_path / "run"), str(world[1].pairs), "--output", str(output)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "chosen above rejected in" in result.output
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 160
    assert [row["answer"] for row in rows[:2]] == ["chosen", "rejected"]
    assert rows[0]["row"] == 1
    alone = tmp_path / "alone.jsonl"
    pair = json.loads(world[1].pairs.read_text(encoding="utf-8").splitlines()[0])
    alone.write_text(json.dumps({"prompt": pair["prompt"], "completion": pair["chosen"]}) + "\n", encoding="utf-8")
    one = tmp_path / "one.jsonl"
    CliRunner().invoke(cli, ["score", str(tmp_path / "run"), str(alone), "--output", str(one)])
    assert json.loads(one.read_text(encoding="utf-8"))["score"] == pytest.approx(rows[0]["score"], abs=1e-5)


@pytest.fixture(scope="module")
def members(world: tuple[Path, WorldFiles], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three reward models that differ in their seed alone."""
    folder = tmp_path_factory.mktemp("members")
    for seed in range(3):
        values = recipe(world, [reward_stage(world[1])], LORA, seed=seed)
        run(recipe_from(values), folder / str(seed), Silent())
    return [folder / str(seed) for seed in range(3)]


def scores_of(runs: list[Path], file: Path, output: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """The rows that `truing score` writes for an ensemble, and what it says."""
    others = [part for other in runs[1:] for part in ("--with", str(other))]
    result = CliRunner().invoke(cli, ["score", str(runs[0]), str(file), "--output", str(output), *others, *options])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()], result.output


def test_an_ensemble_scores_its_mean_less_its_deviation(
    world: tuple[Path, WorldFiles], members: list[Path], tmp_path: Path
) -> None:
    pairs = world[1].pairs
    alone = [scores_of([member], pairs, tmp_path / "alone.jsonl")[0] for member in members]
    assert all("members" not in row for row in alone[0])
    rows, said = scores_of(members, pairs, tmp_path / "three.jsonl", "--deviations", "2")
    for row, *own in zip(rows, *alone, strict=True):
        scores = [one["score"] for one in own]
        assert row["members"] == scores
        assert row["score"] == pytest.approx(np.mean(scores) - 2 * np.std(scores), abs=1e-12)
        assert [row[key] for key in ("row", "answer", "tokens")] == [own[0][key] for key in ("row", "answer", "tokens")]
    assert max(max(row["members"]) - min(row["members"]) for row in rows) > 1e-3, "the seed makes a difference"
    assert all(f"{member}: mean score" in said for member in members)
    assert [row["row"] for row in rows] == sorted(row["row"] for row in rows), "in the order of the file"
    two, _ = scores_of(members[:2], pairs, tmp_path / "two.jsonl")
    assert [row["score"] for row in two] == pytest.approx([min(row["members"]) for row in two], abs=1e-12)


def test_an_ensemble_of_other_tokens_templates_or_of_one_model_twice_is_refused(
    members: list[Path], tmp_path: Path
) -> None:
    check_members(members)
    with pytest.raises(RunError, match="given twice"):
        check_members([members[0], members[1], members[0]])
    other = tmp_path / "other"
    shutil.copytree(members[1], other)
    tokenizer = AutoTokenizer.from_pretrained(other / "final")
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(other / "final")
    with pytest.raises(RunError, match=r"another chat template .* same base"):
        check_members([members[0], other])
    tokenizer.chat_template = template
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(other / "final")
    with pytest.raises(RunError, match=r"another vocabulary .* 'zebra' .* there and none here; .* same base"):
        check_members([members[0], other])


def test_members_apart_by_a_constant_are_pointed_out() -> None:
    def rows(shift: float) -> list[Scored]:
        scores = np.random.default_rng(0).standard_normal((40, 2)) + np.array([0.0, shift])
        names = ("chosen", "rejected")
        return [Scored("f", i // 2, names[i % 2], 0.0, 3, tuple(own)) for i, own in enumerate(scores.tolist())]

    assert not any("centering" in line for line in describe_members(["a", "b"], rows(0.0)))
    assert any("centering" in line for line in describe_members(["a", "b"], rows(5.0)))


def test_a_language_model_is_no_reward_model(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no reward model"):
        open_scorer(world[0])
    run(recipe_from(recipe(world, [sft_stage(world[1])], LORA)), tmp_path / "run", Silent())
    with pytest.raises(RunError, match="no score head"):
        open_scorer(tmp_path / "run")


def test_wilsons_interval() -> None:
    """Values of the closed form at p = 1/2 and at p = 1: n / (n + z²) is the lower end there."""
    low, high = wilson(50, 100)
    assert low + high == pytest.approx(1.0)
    assert high - low == pytest.approx(2 * 1.959964 * 0.5 / math.sqrt(100 + 1.959964**2), rel=1e-9)
    assert wilson(20, 20) == pytest.approx((20 / (20 + 1.959964**2), 1.0))


def test_a_sure_and_right_judge_is_calibrated() -> None:
    sure = np.full(100, 50.0)
    assert calibration_error(sure, np.ones(100)) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(sure, np.full(100, 0.5)) == pytest.approx(0.5)
    undecided = np.zeros(100)
    assert calibration_error(undecided, np.tile([0.0, 1.0], 50)) == pytest.approx(0.0)


def test_scores_of_raw_text_go_through_the_template_that_the_recipe_named(
    world: tuple[Path, WorldFiles], tmp_path: Path
) -> None:
    """The first row's score is the model's on exactly the tokens that training would have made of it."""
    files = world[1]
    stage = reward_stage(files, data={"path": str(files.pairs), "max_length": 64}, optim={"lr": 3e-3, "max_steps": 4})
    run(recipe_from(recipe(world, [{**stage, "template": "chatml"}], LORA)), tmp_path / "run", Silent())
    opened = open_scorer(tmp_path / "run")
    dataset = load(
        DataSettings(path=str(files.pairs), max_length=64, limit=1),
        "comparison",
        opened.tokenizer,
        "chatml",
        opened.loaded.end_tokens,
        lambda done, total: None,
    )
    with torch.no_grad():
        expected = opened.model.completion_scores(opened.model.collate(dataset.train))
    out = tmp_path / "scores.jsonl"
    assert (
        CliRunner().invoke(cli, ["score", str(tmp_path / "run"), str(files.pairs), "--output", str(out)]).exit_code == 0
    )
    first = json.loads(out.read_text(encoding="utf-8").splitlines()[0])
    assert first["answer"] == "chosen"
    assert first["score"] == pytest.approx(float(expected[0]), abs=1e-5)
    assert first["tokens"] == len(dataset.train[0].completions[0].tokens)
