from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from families import VOCAB, make, stock_logprobs, tree
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from truing.core.errors import ModelError
from truing.models.loading import LoadedModel, disable_dropout, load_model

CPU = torch.device("cpu")


def write_tokenizer(folder: Path, size: int = VOCAB) -> None:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, size)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    make("llama").save_pretrained(path)
    write_tokenizer(path)
    return path


def load(path: Path | str, dtype: torch.dtype | None = None) -> LoadedModel:
    return load_model(path, dtype=dtype, device=CPU)


def refused(path: Path | str, *expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(path)
    for part in expected:
        assert part in str(caught.value), str(caught.value)


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_a_loaded_model_computes_what_was_saved(folder: Path) -> None:
    loaded = load(folder)
    trees = [tree(5, 4, 3)]
    assert torch.equal(stock_logprobs(loaded.module, trees), stock_logprobs(make("llama"), trees))
    assert loaded.name == str(folder)
    assert not loaded.module.training
    assert load(folder, torch.bfloat16).module.dtype == torch.bfloat16


def test_the_checkpoints_own_dtype_is_kept(folder: Path, tmp_path: Path) -> None:
    make("llama").bfloat16().save_pretrained(folder)
    assert load(folder).module.dtype == torch.bfloat16


def test_the_digest_changes_with_weights_and_configuration_and_with_nothing_else(folder: Path, tmp_path: Path) -> None:
    first = load(folder).digest
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("notes")
    assert load(copy).digest == first
    edit_weights(copy, lambda w: w | {"model.norm.weight": w["model.norm.weight"] + 1})
    second = load(copy).digest
    edit_config(copy, rms_norm_eps=1e-3)
    assert len({first, second, load(copy).digest}) == 3


def test_end_tokens_are_those_of_the_tokenizer_and_of_generation(folder: Path) -> None:
    assert load(folder).end_tokens == {2}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert load(folder).end_tokens == {2, 7}


def test_dropout_is_off_in_training_mode_and_still_in_the_configuration() -> None:
    for family, changes in {
        "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
        "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
        "llama": {"attention_dropout": 0.5},
    }.items():
        module = make(family, **changes)
        expected = stock_logprobs(module, [tree(5, 9)])
        disable_dropout(module)
        module.train()
        assert torch.equal(stock_logprobs(module, [tree(5, 9)]), expected)
        assert all(vars(module.config)[name] == 0.5 for name in changes)


def test_dropout_added_later_is_the_users(folder: Path) -> None:
    module = load(folder).module
    module.extra = nn.Dropout(0.3)
    assert module.extra.p == 0.3


def test_a_missing_folder_names_a_near_one(folder: Path) -> None:
    refused(folder.parent / "tini", "there is no folder", "did you mean 'tiny'")
    refused(folder / "config.json", "is a file")


def test_a_hub_id_that_cannot_be_fetched_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*args: object, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("connection refused")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    refused("someone/model", "no folder someone/model", "connection refused", "config.json")


def test_folders_that_are_no_model_are_refused_by_what_they_lack(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "no config.json")
    (empty / "adapter_config.json").write_text("{}")
    refused(empty, "adapter", "adapter.start")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json", "not valid JSON")


def test_weights_that_are_missing_pickled_or_incomplete_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "kept")
    refused(folder, "no weights")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, "pytorch_model.bin", "save_pretrained")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "1 of 1 weight files are missing")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").write_bytes((folder / "kept").read_bytes()[:1000])
    refused(folder, "cannot be loaded")


def test_weights_that_do_not_fit_the_configuration_are_refused(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    edit_weights(folder, lambda w: {k: v for k, v in w.items() if k != "model.norm.weight"})
    refused(folder, "no weights for", "model.norm.weight")
    save_file(
        whole | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    refused(folder, "no place for", "q_proj.bias")
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, intermediate_size=64)
    refused(folder, "another shape for", "mlp.down_proj.weight")
    edit_config(folder, intermediate_size=48, hidden_size="x")
    refused(folder, "config.json", "hidden_size")


def test_buffers_of_old_checkpoints_are_let_through(folder: Path) -> None:
    edit_weights(folder, lambda w: w | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    load(folder)


def test_a_tokenizer_that_is_missing_or_too_large_is_refused(folder: Path) -> None:
    write_tokenizer(folder, VOCAB + 1)
    refused(folder, f"{VOCAB + 1} tokens", f"only {VOCAB} embeddings")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(folder, "no tokenizer")


def test_models_that_are_not_causal_are_refused(folder: Path) -> None:
    edit_config(folder, architectures=["LlamaForSequenceClassification"])
    refused(folder, "LlamaForSequenceClassification is not a causal language model")
    edit_config(folder, architectures=["T5ForConditionalGeneration"], model_type="t5")
    refused(folder, "not a causal language model")


def test_code_that_comes_with_a_model_is_never_run(folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    code = f"open({str(proof)!r}, 'w').close()\n"
    (folder / "modeling_own.py").write_text(code)
    (folder / "configuration_own.py").write_text(code)
    own = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    edit_config(folder, model_type="own_thing", auto_map=own)
    refused(folder, "code of its own", "never runs")
    # A known architecture is loaded by transformers' own code, whatever else the folder offers.
    edit_config(folder, model_type="llama", auto_map=own)
    load(folder)
    assert not proof.exists()


def test_loading_prints_nothing_and_leaves_transformers_as_talkative_as_before(folder: Path, capfd) -> None:
    before = logging.get_verbosity()
    load(folder)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""
    assert logging.get_verbosity() == before
