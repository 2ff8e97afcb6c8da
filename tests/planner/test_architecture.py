from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.families import FAMILIES as TINY
from tests.planner.shapes import LLAMA_7B, QWEN3_06B, QWEN3_8B, write
from truing.core.errors import ModelError
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import architecture, read_architecture
from truing.planner.families import FAMILIES


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_counted_as_transformers_makes_them(family: str, tied: bool) -> None:
    config = AutoConfig.for_model(family, **{**TINY[family], "tie_word_embeddings": tied})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = architecture(config.to_dict(), "config.json")
    assert found.numbers == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "published"), [(LLAMA_7B, 6_738_415_616), (QWEN3_8B, 8_190_735_360), (QWEN3_06B, 596_049_920)]
)
def test_published_models_have_their_published_size(config: dict, published: int) -> None:
    assert architecture(config, "config.json").numbers == published


ADAPTERS = [
    AdapterSettings(rank=3),
    AdapterSettings(rank=3, targets=("q_proj", "down_proj")),
    AdapterSettings(rank=3, targets="re:.*layers\\.0\\..*", exclude=("mlp.up_proj",)),
    AdapterSettings(rank=3, dora=True),
    AdapterSettings(rank=3, modules_to_save=("lm_head",)),
]


@pytest.mark.parametrize(
    ("family", "settings"),
    [*(("llama", settings) for settings in ADAPTERS), ("qwen3_moe", ADAPTERS[0]), ("opt", ADAPTERS[0])],
)
def test_an_adapter_is_counted_as_it_is_put_in_place(family: str, settings: AdapterSettings) -> None:
    config = AutoConfig.for_model(family, **TINY[family])
    model = AutoModelForCausalLM.from_config(config)
    count = Adapters(model).add("policy", settings, seed=0).parameters
    assert architecture(config.to_dict(), "config.json").adapter_numbers(settings) == count


def test_a_family_that_is_not_known_is_named_with_its_neighbour() -> None:
    with pytest.raises(ModelError, match=r"'model_type' is 'lama'.*did you mean 'llama'"):
        architecture({"model_type": "lama"}, "config.json")


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
def test_a_missing_key_is_named(key: str) -> None:
    raw = {name: value for name, value in LLAMA_7B.items() if name != key}
    with pytest.raises(ModelError, match=f"config.json: '{key}' is missing; expected a whole number"):
        architecture(raw, "config.json")


@pytest.mark.parametrize("value", ["32", -1, 0, True, 1.5])
def test_a_value_that_is_no_count_is_named(value: object) -> None:
    with pytest.raises(ModelError, match="'num_hidden_layers' is"):
        architecture({**LLAMA_7B, "num_hidden_layers": value}, "config.json")


def test_a_folder_or_its_file_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "seven", LLAMA_7B)
    assert read_architecture(folder) == read_architecture(folder / "config.json")


@pytest.mark.parametrize(("content", "said"), [("[1]", "expected a JSON object"), ("{", "not valid JSON")])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        read_architecture(tmp_path)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no .*config\.json"):
        read_architecture(tmp_path)
