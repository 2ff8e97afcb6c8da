"""What a stage writes answers as what it trained, and a run whose result does not says so before it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.faults.recipes import Ground
from truing.build import parity, result
from truing.build.chain import resume, run
from truing.core.errors import ParityFailed
from truing.recipe.load import recipe_from
from truing.report.write import report_page
from truing.training.progress import Silent


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.write(tmp_path_factory.mktemp("ground"))


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def parity_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_the_figures_are_those_of_the_result_as_it_loads_elsewhere(ground: Ground, tmp_path: Path, lora: bool) -> None:
    listening = Heard()
    stage = {**ground.stage("sft"), "optim": {"lr": 1e-2, "max_steps": 4}}
    final = run(recipe_from(ground.recipe(stage, lora=lora)), tmp_path / "run", listening)
    found = parity_of(tmp_path / "run")
    assert [each["form"] for each in found["differences"]] == (["saved", "merged"] if lora else ["saved"]) + [
        "bfloat16"
    ]
    module = AutoModelForCausalLM.from_pretrained(ground.model if lora else final)
    served = PeftModel.from_pretrained(module, str(final)) if lora else module
    expected = []
    for prompt, completion in zip(found["prompts"], found["completions"], strict=True):
        with torch.no_grad():
            logits = served(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        expected += logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)].tolist()
        assert logits.argmax(-1).tolist() == completion, "the answers are greedy ones"
    assert found["figures"] == pytest.approx(expected, abs=1e-5)
    saved, *_, narrow = found["differences"]
    assert saved["largest"] < 1e-5
    assert saved["agreement"] == 1.0
    assert 1e-4 < narrow["largest"] < 0.5
    assert any("as served, the largest difference" in line for line in listening.said)
    assert "As served" in report_page([tmp_path / "run"])


def test_a_reward_model_is_compared_by_its_scores(ground: Ground, tmp_path: Path) -> None:
    run(recipe_from(ground.recipe(ground.stage("reward"))), tmp_path / "run", Silent())
    found = parity_of(tmp_path / "run")
    assert len(found["figures"]) == len(found["prompts"])
    assert found["differences"][0]["largest"] < 1e-5
    assert found["differences"][0]["agreement"] is None


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_result_that_is_not_what_was_trained_ends_with_code_3(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    real = result.save_tokenizer

    def harms(tokenizer: Any, template: Any, folder: Path) -> None:
        (file,) = folder.glob("*model.safetensors")
        save_file({name: 1.1 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
        real(tokenizer, template, folder)

    recipe = ground.recipe({**ground.stage("sft"), "optim": {"lr": 1e-2, "max_steps": 4}}, lora=lora)
    monkeypatch.setattr(result, "save_tokenizer", harms)
    with pytest.raises(ParityFailed, match="does not answer as what was trained: log-probs or scores differ") as told:
        run(recipe_from(recipe), tmp_path / "run", Silent())
    assert told.value.exit_code == 3
    assert parity_of(tmp_path / "run")["complaint"] in report_page([tmp_path / "run"])
    monkeypatch.setattr(result, "save_tokenizer", real)
    (tmp_path / "run" / "final").rename(tmp_path / "wrong")
    resume(tmp_path / "run", Silent())
    assert parity_of(tmp_path / "run")["complaint"] is None


def test_another_template_or_stop_token_is_noticed(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = result.save_tokenizer

    def other_end(tokenizer: Any, template: Any, folder: Path) -> None:
        real(tokenizer, template, folder)
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<unk>"}), encoding="utf-8")

    monkeypatch.setattr(result, "save_tokenizer", other_end)
    with pytest.raises(ParityFailed, match="not the stop tokens"):
        run(recipe_from(ground.recipe(ground.stage("sft"))), tmp_path / "run", Silent())
    monkeypatch.setattr(result, "save_tokenizer", lambda tokenizer, template, folder: tokenizer.save_pretrained(folder))
    with pytest.raises(ParityFailed, match="not the chat template"):
        run(recipe_from(ground.recipe(ground.stage("sft"), template="chatml")), tmp_path / "other", Silent())


def test_a_result_that_cannot_be_read_back_for_want_of_memory_is_kept(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(parity, "measure", full)
    final = run(recipe_from(ground.recipe(ground.stage("sft"))), tmp_path / "run", Silent())
    assert (final / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "parity.json").exists()
