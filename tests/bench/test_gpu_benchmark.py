"""The benchmark for a GPU: its cost formulas, and that everything but the device works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from benchmarks.gpu.cost import SHAPES, Rows, attention, forward, lora_step  # noqa: E402


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_weights_of_a_shape_are_those_of_the_model(name: str) -> None:
    shape = SHAPES[name]
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    matrices = [weight.numel() for weight in model.model.layers.parameters() if weight.ndim == 2]
    assert shape.body == sum(matrices)
    assert shape.head == model.get_output_embeddings().weight.numel()


def test_a_shared_prompt_is_counted_once() -> None:
    shared, apart = (Rows(3, 5, 2, 2, shared=which) for which in (True, False))
    assert (shared.tokens, apart.tokens) == (3 * (5 + 2 + 2), 3 * 2 * (5 + 2))
    assert shared.read_tokens == apart.read_tokens == apart.tokens
    assert shared.targets == apart.targets == 12
    # Alone, a row of 7 tokens has 1 + … + 7 = 28 pairs; the second of a tree leaves out the prompt's 1 + … + 5.
    assert apart.pairs == 3 * 2 * 28
    assert shared.pairs == 3 * (28 + 28 - 15)


def test_a_step_of_dpo_costs_four_passes_of_sft_s_three_and_a_reference() -> None:
    shape, rows = SHAPES["tiny"], Rows(2, 6, 3, 2, shared=True)
    once = 2 * shape.body * rows.tokens, attention(shape, rows), 2 * shape.head * rows.targets
    assert forward(shape, rows) == sum(once)
    assert lora_step(shape, rows, reference=False) == 2 * once[0] + 3 * once[1] + 2 * once[2]
    assert lora_step(shape, rows, reference=True) == 3 * once[0] + 4 * once[1] + 3 * once[2]


def benchmark(output: Path, *options: str) -> dict:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu"), "--tiny", "--output", str(output), *options]
    subprocess.run(command, check=True, capture_output=True)
    assert (output / "gpu.md").read_text(encoding="utf-8").startswith("# On a GPU")
    found: dict = json.loads((output / "gpu.json").read_text(encoding="utf-8"))
    return found


def test_the_vocabulary_s_loss_is_measured_against_plain_cross_entropy(tmp_path: Path) -> None:
    head = benchmark(tmp_path, "--only", "loss head")["head"]
    plain, ours = head["plain cross-entropy"], head["truing"]
    assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    assert ours["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-2)


def test_a_row_that_has_no_time_left_is_named(tmp_path: Path) -> None:
    found = benchmark(tmp_path, "--only", "dpo", "--minutes", "0")
    assert found["rows"] == []
    assert "no time" in found["skipped"]["materials, tiny"]


@pytest.mark.slow
def test_a_row_gives_losses_memory_and_what_was_planned(tmp_path: Path) -> None:
    found = benchmark(tmp_path, "--only", "dpo, tiny, truing")
    assert found["skipped"].keys() <= {"trl"}
    (dpo,) = found["rows"]
    assert len(dpo["losses"]) == len(dpo["step_seconds"]) == 4
    assert dpo["losses"][0] == pytest.approx(0.6931, abs=1e-3)
    # A process with torch in it; a plan for a CPU counts that too.
    assert 10**8 < dpo["peak_bytes"] < 2 * dpo["planned_bytes"]
