"""Adapters against `peft`: the same numbers in memory and through folders, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_models import FAMILIES, TOKENS, VOCABULARY, logits, loss, stir, tiny
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from truing.core.errors import AdapterError
from truing.models.lora.adapters import Adapters
from truing.models.lora.peft_format import load_adapter, save_adapter
from truing.models.lora.settings import AdapterSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:peft")

PROJECTIONS = {"llama": ["q_proj", "down_proj"], "qwen2": ["k_proj", "up_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}
VARIANTS = {
    "plain": {},
    "rslora": {"rslora": True, "alpha": 3},
    "dora": {"dora": True},
    "head": {"modules_to_save": ("lm_head",)},
    "norm": {"modules_to_save": ("layers.1.input_layernorm", "h.1.ln_1")},
    "pissa": {"init": "pissa"},
    "pissa-rslora": {"init": "pissa", "rslora": True},
}


def trained(family: str, **fields: object) -> Adapters:
    """A model with one active adapter away from its start."""
    adapters = Adapters(tiny(family))
    adapters.add("policy", AdapterSettings.model_validate({"rank": 4, **fields}), seed=0)
    stir(adapters, "policy", size=0.1)
    adapters.switch("policy")
    return adapters


def peft_trained(model: PreTrainedModel, **fields: object) -> PeftModel:
    """The same made by peft, its parameters moved by a seeded draw."""
    wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **fields}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return wrapped.eval()


def fitting(family: str, variant: dict) -> dict:
    """A variant whose module names exist in this family."""
    names = [
        n for n in variant.get("modules_to_save", ()) if n.startswith("h.") == (family == "gpt2") or n == "lm_head"
    ]
    return {**variant, "modules_to_save": names} if names else variant


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_saved_here_has_the_same_logits_in_peft(family: str, variant: str, tmp_path: Path) -> None:
    adapters = trained(family, **fitting(family, VARIANTS[variant]))
    save_adapter(adapters, "policy", tmp_path, "base")
    theirs = PeftModel.from_pretrained(tiny(family), tmp_path).eval()
    with adapters.use(None):
        assert (logits(adapters.model) - logits(theirs)).abs().max() > 0.05
    torch.testing.assert_close(logits(theirs), logits(adapters.model), atol=1e-6, rtol=0)


PEFT_FIELDS = {
    "names": {},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*\.1\..*(q_proj|k_proj|c_attn|down_proj)"},
    "exclude": {"target_modules": "all-linear", "exclude_modules": ["k_proj", "mlp.c_fc"]},
    "exclude-regex": {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*"},
    "layers": {"layers_to_transform": [1]},
    "layers-pattern": {"layers_to_transform": 0, "layers_pattern": ["layers", "h"]},
    "patterns": {
        "rank_pattern": {"down_proj": 7, r"layers\.0.*k_proj": 2, "mlp.c_proj": 3},
        "alpha_pattern": {"q_proj": 5},
    },
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 9, "c_attn": 2}},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.3},
    "head": {"modules_to_save": ["lm_head"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("fields", PEFT_FIELDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_saved_by_peft_has_the_same_logits_here(family: str, fields: str, tmp_path: Path) -> None:
    given = {"target_modules": PROJECTIONS[family], "fan_in_fan_out": family == "gpt2", **PEFT_FIELDS[fields]}
    theirs = peft_trained(tiny(family), **given)
    expected = logits(theirs)
    theirs.save_pretrained(tmp_path)
    adapters = Adapters(tiny(family))
    summary = load_adapter(adapters, "policy", tmp_path)
    assert summary.parameters == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert (logits(adapters.model) - expected).abs().max() > 0.05
    with adapters.use("policy"):
        torch.testing.assert_close(logits(adapters.model), expected, atol=1e-6, rtol=0)
        # And on to peft again, from what was read.
        save_adapter(adapters, "policy", tmp_path / "again", "base")
    again = PeftModel.from_pretrained(tiny(family), tmp_path / "again").eval()
    torch.testing.assert_close(logits(again), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_peft(family: str, variant: str, tmp_path: Path) -> None:
    adapters = trained(family, **VARIANTS[variant])
    save_adapter(adapters, "policy", tmp_path, "base")
    theirs = PeftModel.from_pretrained(tiny(family), tmp_path, is_trainable=True).eval()
    loss(adapters.model).backward()
    loss(theirs).backward()
    found = {
        name.replace(".default", "").replace("modules_to_save.", ""): p.grad for name, p in theirs.named_parameters()
    }
    ours = adapters.parameters("policy")
    assert len(ours) >= 16
    for key, parameter in ours.items():
        name = f"base_model.model.{key}" + (".weight" if key.endswith("_vector") else "")
        torch.testing.assert_close(parameter.grad, found[name], atol=1e-5, rtol=1e-5)


def test_what_is_written_holds_the_adapter_and_nothing_of_the_base(tmp_path: Path) -> None:
    adapters = trained("llama", modules_to_save=("lm_head",), targets=("q_proj", "up_proj"))
    save_adapter(adapters, "policy", tmp_path, "models/base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model."
    assert sorted(tensors) == sorted(f"{prefix}{key}" for key in adapters.parameters("policy"))
    assert f"{prefix}model.layers.1.mlp.up_proj.lora_A.weight" in tensors
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/base"
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (4, 8, ["lm_head"])
    assert config["target_modules"] == ["q_proj", "up_proj"]


def test_layers_that_no_short_name_describes_are_written_by_path(tmp_path: Path) -> None:
    adapters = trained("llama", targets=r"re:.*\.0\.self_attn\.q_proj")
    save_adapter(adapters, "policy", tmp_path, "base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.self_attn.q_proj"]
    theirs = PeftModel.from_pretrained(tiny("llama"), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(adapters.model), atol=1e-6, rtol=0)


def test_a_saved_adapter_comes_back_with_its_bits_and_its_settings(tmp_path: Path) -> None:
    adapters = trained("qwen2", dora=True, modules_to_save=("lm_head",), alpha=5, dropout=0.1)
    save_adapter(adapters, "policy", tmp_path, "base")
    again = Adapters(tiny("qwen2"))
    again.add("value", AdapterSettings(rank=2), seed=0)
    again.switch("value")
    load_adapter(again, "policy", tmp_path)
    assert again.active == "value"
    before, after = adapters.parameters("policy"), again.parameters("policy")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with again.use("policy"):
        assert torch.equal(logits(again.model), logits(adapters.model))
    found = again.settings("policy")
    assert (found.rank, found.alpha, found.dora, found.dropout) == (4, 5.0, True, 0.1)


def test_the_recipe_decides_how_a_loaded_adapter_trains_and_the_folder_what_it_is(tmp_path: Path) -> None:
    save_adapter(trained("llama"), "policy", tmp_path, "base")
    adapters = Adapters(tiny("llama"))
    recipe = AdapterSettings(rank=32, dropout=0.2, lr_ratio=8, between_stages="merge")
    summary = load_adapter(adapters, "policy", tmp_path, training=recipe)
    found = adapters.settings("policy")
    assert (found.rank, found.dropout, found.lr_ratio, found.between_stages) == (4, 0.2, 8, "merge")
    assert {low.dropout for low in adapters.layers("policy").values()} == {0.2}
    assert summary.notes == (f"the recipe's adapter.rank 32 is not used: {tmp_path} has 4",)


def test_a_score_head_of_a_classifier_goes_both_ways(tmp_path: Path) -> None:
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(**shape, vocab_size=VOCABULARY, num_labels=1, pad_token_id=0)

    def classifier() -> PreTrainedModel:
        torch.manual_seed(0)
        return LlamaForSequenceClassification(config).eval()

    theirs = peft_trained(classifier(), target_modules=["q_proj"], task_type="SEQ_CLS")
    theirs.save_pretrained(tmp_path / "theirs")
    assert set(theirs.peft_config["default"].modules_to_save) == {"classifier", "score"}
    adapters = Adapters(classifier())
    assert load_adapter(adapters, "reward", tmp_path / "theirs").saved == ("score",)
    adapters.switch("reward")
    torch.testing.assert_close(logits(adapters.model), logits(theirs), atol=1e-6, rtol=0)
    save_adapter(adapters, "reward", tmp_path / "ours", "base")
    again = PeftModel.from_pretrained(classifier(), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(again), logits(theirs), atol=1e-6, rtol=0)


def saved_folder(folder: Path, config: dict | None = None, tensors: dict | None = None) -> Path:
    """A good folder with some fields and tensors replaced; None removes a tensor."""
    save_adapter(trained("llama", targets="q_proj"), "policy", folder, "base")
    where, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    where.write_text(json.dumps({**json.loads(where.read_text()), **(config or {})}))
    replaced = {**load_file(weights), **(tensors or {})}
    save_file({key: tensor for key, tensor in replaced.items() if tensor is not None}, weights)
    return folder


A_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"bias": "all"}, {}, ["'bias' is 'all'"]),
        ({"peft_type": "IA3"}, {}, ["'peft_type' is 'IA3'"]),
        ({"init_lora_weights": "pissa_niter_4"}, {}, ["'init_lora_weights' is 'pissa_niter_4'"]),
        ({"init_lora_weights": "olora"}, {}, ["'init_lora_weights' is 'olora'"]),
        ({"loftq_config": {"loftq_bits": 4}}, {}, ["'loftq_config'"]),
        ({"megatron_config": {"a": 1}, "lora_bias": True}, {}, ["'megatron_config'", "'lora_bias'"]),
        ({"trainable_token_indices": [3]}, {}, ["'trainable_token_indices'"]),
        ({"use_something_new": True}, {}, ["'use_something_new' is True"]),
        ({"r": "four"}, {}, ["adapter_config.json", "wrong type"]),
        ({"lora_dropout": 1.5}, {}, ["adapter_config.json", "'dropout'"]),
        ({"target_modules": None}, {}, ["wrong type"]),
        ({"target_modules": ["query"]}, {}, ["'target_modules' ('query',) matches no linear layer", "q_proj"]),
        ({"target_modules": ["lm_head"]}, {}, ["output head 'lm_head'"]),
        ({"modules_to_save": ["headless"]}, {}, ["'modules_to_save' names ['headless']"]),
        ({"target_modules": ["q_proj", "v_proj"]}, {}, ["4 keys are missing: model.layers.0.self_attn.v_proj.lora_A"]),
        ({"use_dora": True}, {}, ["2 keys are missing", "lora_magnitude_vector"]),
        ({"r": 5}, {}, [f"'{A_KEY[17:]}' has shape [4, 24], expected [5, 24]"]),
        ({}, {A_KEY: None}, ["1 keys are missing", A_KEY[17:]]),
        ({}, {"base_model.model.lm_head.weight": torch.zeros(2)}, ["1 keys match nothing", "lm_head.weight"]),
        ({}, {A_KEY.replace(".0.", ".7."): torch.zeros(4, 24)}, ["match nothing", "layers.7"]),
    ],
)
def test_a_folder_that_cannot_be_honoured_is_refused_by_name(config, tensors, words, tmp_path: Path) -> None:
    adapters = Adapters(tiny("llama"))
    before = [type(m) for m in adapters.model.modules()]
    with pytest.raises(AdapterError) as caught:
        load_adapter(adapters, "policy", saved_folder(tmp_path, config, tensors))
    assert str(tmp_path) in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert adapters.names == ()
    assert [type(m) for m in adapters.model.modules()] == before


def test_a_folder_that_is_not_one_is_refused_with_the_remedy(tmp_path: Path) -> None:
    adapters = Adapters(tiny("llama"))
    with pytest.raises(AdapterError, match="no such adapter folder"):
        load_adapter(adapters, "policy", tmp_path / "absent")
    with pytest.raises(AdapterError, match=r"it has no adapter_config\.json"):
        load_adapter(adapters, "policy", tmp_path)
    folder = saved_folder(tmp_path / "pickled")
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:-1], whole[:5], b"not tensors"):
        weights.write_bytes(broken)
        with pytest.raises(AdapterError, match="not a complete safetensors file"):
            load_adapter(adapters, "policy", folder)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"there is no adapter_model\.safetensors"):
        load_adapter(adapters, "policy", folder)
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(AdapterError, match=r"pickle.*safe_serialization=True"):
        load_adapter(adapters, "policy", folder)
    for text in ("{", "[]", "[" * 100_000):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(AdapterError, match=r"adapter_config\.json"):
            load_adapter(adapters, "policy", folder)


def test_saving_while_another_adapter_is_active_writes_the_named_one(tmp_path: Path) -> None:
    adapters = trained("llama", modules_to_save=("lm_head",))
    expected = logits(adapters.model)
    adapters.add("value", AdapterSettings(rank=2, modules_to_save=("lm_head",)), seed=1)
    stir(adapters, "value", seed=9)
    adapters.switch("value")
    save_adapter(adapters, "policy", tmp_path, "base")
    theirs = PeftModel.from_pretrained(tiny("llama"), tmp_path).eval()
    torch.testing.assert_close(theirs(input_ids=TOKENS).logits, expected, atol=1e-6, rtol=0)
