from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.planner.shapes import LLAMA_7B, QWEN3_06B, QWEN3_8B, write
from truing.cli.main import cli
from truing.core.errors import InputError, ModelError, RecipeError
from truing.planner.machine import GIB, named_card


def said(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["plan", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def seven(tmp_path: Path) -> str:
    return str(write(tmp_path / "seven", LLAMA_7B))


@pytest.fixture
def recipe(tmp_path: Path, seven: str) -> Path:
    rows = [{"prompt": "word " * 10, "completion": "word " * 20} for _ in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    file = tmp_path / "recipe.yaml"
    stages = [{"objective": {"use": "sft"}, "data": {"path": str(tmp_path / "rows.jsonl")}}]
    file.write_text(json.dumps({"model": seven, "adapter": {"use": "lora"}, "stages": stages}), encoding="utf-8")
    return file


@pytest.mark.parametrize("config", [LLAMA_7B, QWEN3_06B, QWEN3_8B])
def test_a_plan_needs_a_configuration_alone_and_no_torch(config: dict, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", config)
    program = (
        "import sys\nfrom truing.cli.main import cli\n"
        f"cli(['plan', '--model', {str(folder)!r}, '--method', 'dpo', '--gpu', '24GB'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "together" in done.stdout


def test_a_recipe_is_planned_from_its_own_rows_without_torch(recipe: Path) -> None:
    program = (
        "import sys\nfrom truing.cli.main import cli\n"
        f"cli(['plan', {str(recipe)!r}, '--json'], standalone_mode=False)\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads(done.stdout)
    assert plan["total_bytes"] == sum(plan["bytes"].values())


def test_a_longer_length_than_the_data_has_needs_more(recipe: Path) -> None:
    (own,), (long,) = (json.loads(said(str(recipe), "--json", *more)) for more in ((), ("--length", "1024")))
    assert own["total_bytes"] < long["total_bytes"]


def test_a_batch_in_tokens_is_as_many_rows_as_they_are(recipe: Path) -> None:
    """Rows of 100 tokens each: 400 tokens are a step of four."""
    batches = (("batch.tokens=400",), ("batch.examples=4",), ("batch.examples=8",))
    tokens, four, eight = (
        json.loads(said(str(recipe), "--json", "--length", "100", "--set", *batch))[0]["flop_per_step"]
        for batch in batches
    )
    assert tokens == four < eight


def test_a_comparison_is_planned_whole_however_few_tokens_are_computed_at_once(seven: str) -> None:
    """Training computes a row that is longer than a micro-batch alone, and never parts a pair."""
    asked = ("--model", seven, "--method", "dpo", "--length", "2048", "--examples", "1", "--json")
    small, large = (json.loads(said(*asked, "--micro-tokens", tokens))[0] for tokens in ("256", "8192"))
    assert small["bytes"] == large["bytes"]
    assert small["flop_per_step"] == large["flop_per_step"]


def test_what_does_not_fit_is_told_with_the_change_that_does(seven: str) -> None:
    text = said("--model", seven, "--method", "dpo", "--gpu", "24GB")
    assert "does not fit into the 24.0 GiB" in text
    assert "smallest change that does: --set" in text


def test_a_4_bit_base_fits_where_16_bits_do_not(seven: str) -> None:
    small = ("--checkpointing", "--examples", "1", "--gpu", "8GB")
    assert "smallest change that does: --set adapter.base=nf4" in said("--model", seven, *small)
    text = said("--model", seven, "--adapter", "qlora", *small)
    assert "LoRA rank 16 over nf4, bf16" in text
    assert "  fits into the 8.0 GiB" in text


def test_the_table_has_every_method_and_way(seven: str) -> None:
    text = said("--model", seven, "--table", "--checkpointing", "--gpu", "24GB")
    assert [line.split()[0] for line in text.splitlines()[1:6]] == ["sft", "dpo", "kto", "reward", "ppo"]
    assert text.splitlines()[0].split() == ["full", "LoRA", "QLoRA"]
    assert text.splitlines()[1].count(" x") == 1, "of SFT all weights alone do not fit"


def test_a_size_is_binary_whatever_it_is_called() -> None:
    assert {named_card(word).memory for word in ("24GB", "24gib", "24 G", "RTX4090")} == {24 * GIB}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--gpu", "rtx409"], InputError, "did you mean 'rtx4090'"),
        (["--gpu", "0xffGB"], InputError, "expected a size such as 24GB"),
        (["--method", "dpoo"], RecipeError, "did you mean 'dpo'"),
    ],
)
def test_a_word_that_is_not_known_is_named(seven: str, arguments: list[str], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        cli.main(["plan", "--model", seven, *arguments], standalone_mode=False)


def test_an_option_without_effect_is_refused(recipe: Path, seven: str) -> None:
    for arguments in ([str(recipe), "--rank", "8"], ["--model", seven, "--set", "optim.lr=1"]):
        done = CliRunner().invoke(cli, ["plan", *arguments])
        assert done.exit_code == 2
        assert "has no effect here" in done.output


def test_neither_recipe_nor_model_is_refused() -> None:
    done = CliRunner().invoke(cli, ["plan"])
    assert done.exit_code == 2
    assert "give a RECIPE, or --model" in done.output


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no .*nothing"):
        cli.main(["plan", "--model", str(tmp_path / "nothing")], standalone_mode=False)
