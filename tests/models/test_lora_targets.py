"""Laws of what a recipe may say about an adapter, and of the layers it names."""

from __future__ import annotations

import pytest
from lora_models import tiny
from transformers import LlamaConfig, LlamaForSequenceClassification

from truing.core.errors import AdapterError, RecipeError
from truing.core.settings import parse
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings

SMALL = AdapterSettings(rank=4)


def test_all_linear_layers_are_those_of_the_body() -> None:
    for family, count in (("llama", 14), ("gpt2", 8), ("qwen2", 14)):
        layers = Adapters(tiny(family, tied=True)).add("policy", SMALL, seed=0).layers
        assert len(layers) == count
        assert not any("lm_head" in path for path in layers)
    config = LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, vocab_size=48
    )
    layers = Adapters(LlamaForSequenceClassification(config)).add("reward", SMALL, seed=0).layers
    assert len(layers) == 7
    assert "score" not in layers


@pytest.mark.parametrize(
    ("targets", "exclude", "expected"),
    [
        (
            ("q_proj", "v_proj"),
            (),
            ["0.self_attn.q_proj", "0.self_attn.v_proj", "1.self_attn.q_proj", "1.self_attn.v_proj"],
        ),
        ("o_proj", (), ["0.self_attn.o_proj", "1.self_attn.o_proj"]),
        (r"re:.*\.1\.mlp\..*", (), ["1.mlp.gate_proj", "1.mlp.up_proj", "1.mlp.down_proj"]),
        (
            "all-linear",
            ("layers.0.mlp.up_proj", r"re:.*self_attn.*", "re:.*down.*"),
            ["0.mlp.gate_proj", "1.mlp.gate_proj", "1.mlp.up_proj"],
        ),
    ],
)
def test_targets_are_names_at_the_end_of_paths_or_expressions_for_whole_paths(targets, exclude, expected) -> None:
    summary = Adapters(tiny("llama")).add("policy", AdapterSettings(targets=targets, exclude=exclude), seed=0)
    assert [path.removeprefix("model.layers.") for path in summary.layers] == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"targets": ("q_proj", "v_prj")}, ["'v_prj' matches no module", "v_proj", "down_proj"]),
        ({"targets": "proj"}, ["'proj' matches no module"]),
        ({"targets": "input_layernorm"}, ["'input_layernorm' matches 2 modules, none of them linear"]),
        ({"targets": "re:.*head"}, ["output head 'lm_head'", "modules_to_save"]),
        ({"targets": "q_proj", "exclude": ("q_proj",)}, ["adapter.exclude"]),
        ({"modules_to_save": ("lm_heat",)}, ["'lm_heat' matches no module", "'lm_head'"]),
    ],
)
def test_what_matches_nothing_is_an_error_that_names_it(settings: dict, words: list[str]) -> None:
    model = tiny("llama")
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(AdapterError) as caught:
        Adapters(model).add("policy", AdapterSettings(**settings), seed=0)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert [type(m) for m in model.modules()] == kinds


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"rank": 0}, "'rank'"),
        ({"dropout": 1.0}, "'dropout'"),
        ({"targets": []}, "all-linear"),
        ({"targets": "re:(("}, "not a regular expression"),
        ({"exclude": [""]}, "cannot be empty"),
        ({"dora": True, "init": "pissa"}, "cannot be combined"),
        ({"ranks": 8}, "did you mean 'rank'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(raw: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse(AdapterSettings, raw)


def test_alpha_is_twice_the_rank_unless_given() -> None:
    assert AdapterSettings(rank=8).effective_alpha == 16
    assert AdapterSettings(rank=8, alpha=4).effective_alpha == 4


def test_the_head_is_left_alone_where_the_body_is_the_whole_model() -> None:
    model = tiny("llama")
    model.base_model_prefix = ""  # as in families that do not name their body
    assert model.base_model is model
    assert "lm_head" not in Adapters(model).add("policy", SMALL, seed=0).layers
