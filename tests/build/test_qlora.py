"""Runs over a base in four bits: every method, resumed and split without a trace, and what results say of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.build.runs import assert_a_cut_changes_nothing, metrics
from tests.faults.recipes import Ground
from truing.build.chain import preview, run
from truing.build.load_result import open_result
from truing.build.merge import merge_run
from truing.build.verify import verify_run
from truing.cli.main import cli
from truing.core import extras
from truing.core.errors import RecipeError
from truing.models import nf4
from truing.models.nf4 import FILE, PackedLinear
from truing.recipe.load import recipe_from
from truing.training.progress import Silent

QLORA = {"use": "lora", "rank": 2, "base": "nf4"}
LN2 = math.log(2)


class Heard(Silent):
    def __init__(self) -> None:
        self.warned: list[str] = []
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.write(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def chain(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SFT and then DPO over a 4-bit base, by the command."""
    folder = tmp_path_factory.mktemp("chain")
    recipe = quantised(ground, ground.stage("sft"), ground.stage("dpo"))
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    answer = CliRunner().invoke(cli, ["train", str(folder / "recipe.yaml"), "--output", str(folder / "run")])
    assert answer.exit_code == 0, answer.output
    assert "LoRA rank 2 over nf4" in answer.output
    assert "kernels" not in answer.output
    return folder / "run"


def quantised(ground: Ground, *stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return ground.recipe(*stages, **{"adapter": QLORA, **more})


def differences(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    assert found["complaint"] is None
    return {each["form"]: each["largest"] for each in found["differences"]}


def test_the_first_loss_of_dpo_is_ln_2_and_its_reference_the_adapter_it_began_with(chain: Path) -> None:
    first = metrics(chain / "2-dpo")[0]
    assert first["loss"] == pytest.approx(LN2, abs=1e-6)
    assert first["rewards/chosen"] == 0.0


def test_a_result_says_what_its_base_was_packed_with_and_answers_as_trained_over_that(chain: Path) -> None:
    assert nf4.storage_of(chain / "final") == "nf4"
    found = differences(chain / "2-dpo")
    assert set(found) == {"saved", "merged", "unquantised base"}
    assert found["saved"] < 1e-5
    assert found["merged"] < 1e-4
    assert found["unquantised base"] > 1e-2, "four bits are not the original numbers"
    environment = json.loads((chain / "2-dpo" / "environment.json").read_text(encoding="utf-8"))
    assert environment["versions"]["bitsandbytes"] != "not installed"


@pytest.mark.parametrize("packed", [True, False], ids=["nf4", "original"])
def test_a_result_loads_in_peft_over_either_base(chain: Path, ground: Ground, packed: bool) -> None:
    quantisation = BitsAndBytesConfig(**json.loads((chain / "final" / FILE).read_text(encoding="utf-8")))
    how = {"quantization_config": quantisation} if packed else {}
    base = AutoModelForCausalLM.from_pretrained(ground.model, **how)
    served = PeftModel.from_pretrained(base, str(chain / "final"))
    parity = json.loads((chain / "2-dpo" / "parity.json").read_text(encoding="utf-8"))
    prompt, completion = parity["prompts"][0], parity["completions"][0]
    # While a gradient is wanted, bitsandbytes computes in float32 on every CPU.
    served.train()
    ids = served.get_input_embeddings()(torch.tensor([prompt + completion])).detach().requires_grad_()
    logprobs = served(inputs_embeds=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    found = logprobs[torch.arange(len(completion)), torch.tensor(completion)]
    expected = torch.tensor(parity["figures"][: len(completion)])
    difference = float((found - expected).abs().max())
    assert difference < 1e-4 if packed else 1e-3 < difference < differences(chain / "2-dpo")["unquantised base"] + 1e-4


def test_merging_keeps_the_answers_that_were_trained(chain: Path, tmp_path: Path) -> None:
    told = merge_run(chain, tmp_path / "merged")
    assert "into the unpacked 4-bit base" in told
    opened = open_result(chain)
    assert nf4.unpacked_bytes(opened.model.module) > nf4.stored_bytes(opened.model.module)
    merged = open_result(tmp_path / "merged")
    assert not any(isinstance(part, PackedLinear) for part in merged.model.module.modules())
    ids = torch.tensor([[3, 5, 7, 11]])
    with torch.no_grad(), opened.model.stock_attention() as own, merged.model.stock_attention() as other:
        assert torch.allclose(own(input_ids=ids).logits, other(input_ids=ids).logits, atol=1e-4)


def test_a_stage_of_all_weights_goes_on_from_the_answers_of_four_bits(ground: Ground, tmp_path: Path) -> None:
    """The adapter is merged into what it was trained over, so that DPO's first loss is that of the very same model."""
    recipe = quantised(ground, ground.stage("sft", steps=2), {**ground.stage("dpo", steps=1), "adapter": "none"})
    final = run(recipe_from(recipe), tmp_path / "run", Silent())
    first = metrics(tmp_path / "run" / "2-dpo")[0]
    assert first["loss"] == pytest.approx(LN2, abs=1e-5)
    other = quantised(ground, ground.stage("sft", steps=2), ground.stage("dpo", steps=1))
    run(recipe_from(other), tmp_path / "other", Silent())
    same = metrics(tmp_path / "other" / "2-dpo")[0]
    assert first["logps/chosen"] == pytest.approx(same["logps/chosen"], abs=1e-3)
    assert nf4.storage_of(final) is None


@pytest.mark.parametrize("use", ["reward", "kto", "orpo", "grpo"])
def test_every_kind_of_method_runs_over_four_bits(ground: Ground, tmp_path: Path, use: str) -> None:
    run(recipe_from(quantised(ground, ground.stage(use))), tmp_path / "run", Silent())
    assert len(metrics(tmp_path / "run")) == 3
    assert differences(tmp_path / "run")["saved"] < 1e-5


@pytest.mark.parametrize("shared", [True, False], ids=["one base", "bases"])
def test_ppo_has_all_its_roles_over_four_bits_and_begins_at_ratio_1(
    ground: Ground, tmp_path: Path, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    real = nf4.take_over
    monkeypatch.setattr("truing.models.loading.take_over", lambda model: (loads.append(model), real(model)))
    ppo = ground.stage("ppo")
    ppo["rollout"] = {**ppo["rollout"], "rewards": ["reward"], "share_base": shared}
    recipe = quantised(ground, ground.stage("sft", steps=1), ground.stage("reward", steps=1), ppo)
    run(recipe_from(recipe), tmp_path / "run", Silent())
    first = metrics(tmp_path / "run" / "3-ppo")[0]
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    # A stage loads its policy; apart, PPO loads reference, critic and reward model too.
    assert len(loads) == (3 if shared else 6)


@pytest.mark.parametrize("use", ["dpo", "ppo"])
def test_a_cut_run_ends_in_the_same_bits(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    batch = {"examples": 8, "micro_tokens": 64}
    recipe = quantised(ground, ground.stage("sft", steps=1), ground.stage(use), batch=batch)
    assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective=use, step=2, stage=f"2-{use}")


def test_splitting_packing_and_recomputing_change_nothing(ground: Ground, tmp_path: Path) -> None:
    losses = []
    ways: tuple[dict[str, Any], ...] = (
        {"batch": {"examples": 4, "micro_tokens": 4096}},
        {"batch": {"examples": 4, "micro_tokens": 32}},
        {"precision": {"matmul": "highest", "gradient_checkpointing": True}},
        {"data": {**ground.stage("dpo")["data"], "packing": False}},
    )
    for number, way in enumerate(ways):
        stage = {**ground.stage("dpo"), **way}
        run(recipe_from(quantised(ground, stage)), tmp_path / str(number), Silent())
        losses.append([row["loss"] for row in metrics(tmp_path / str(number))])
    assert all(row == pytest.approx(losses[0], abs=1e-5) for row in losses[1:])


def test_what_is_kept_of_a_reference_is_never_taken_for_that_of_another_base(ground: Ground, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for base in (None, "nf4", "nf4"):
        stage = {**ground.stage("dpo", steps=1), "reference": {"cache": str(kept), "precompute_ref_log_probs": True}}
        recipe = quantised(ground, stage, adapter={**QLORA, "base": base})
        name = f"{base}{len(list(kept.glob('*')))}" if kept.is_dir() else str(base)
        run(recipe_from(recipe), tmp_path / name, Silent())
        assert metrics(tmp_path / name)[0]["loss"] == pytest.approx(LN2, abs=1e-6)
    assert len(list(kept.glob("*.safetensors"))) == 2


def test_going_on_over_another_base_is_told(chain: Path, ground: Ground) -> None:
    start = str(chain / "1-sft" / "final")
    for base, count in ((None, 1), ("nf4", 0)):
        heard = Heard()
        recipe = quantised(ground, ground.stage("dpo"), adapter={**QLORA, "base": base, "start": start})
        preview(recipe_from(recipe), heard)
        assert sum("was trained with adapter.base nf4" in told for told in heard.warned) == count


def test_four_bits_compute_in_bfloat16_too(ground: Ground, tmp_path: Path) -> None:
    recipe = quantised(ground, ground.stage("dpo"), precision={"dtype": "bf16", "matmul": "highest"})
    run(recipe_from(recipe), tmp_path / "run", Silent())
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(LN2, abs=1e-3)
    opened = open_result(tmp_path / "run", torch.bfloat16)
    assert opened.model.module.dtype == torch.bfloat16


def test_a_missing_package_is_named_before_anything_is_loaded(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install"):
        run(recipe_from(quantised(ground, ground.stage("sft"))), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_packing_is_the_same_each_time_so_that_a_replay_ends_in_the_same_bits(chain: Path) -> None:
    heard = Heard()
    verify_run(chain, 3, heard)  # raises where a figure differs
    assert sum("identical to an uninterrupted run" in told for told in heard.said) == 2
