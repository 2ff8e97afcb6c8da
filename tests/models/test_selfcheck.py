from __future__ import annotations

import pytest
import torch
from families import make
from torch import Tensor, nn
from transformers import PreTrainedModel

from truing.core.errors import ModelError
from truing.models.language_model import set_attention, stock_attention
from truing.models.selfcheck import self_check


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "sharing"),
    [
        ("llama", "tree"),
        ("gemma2", "tree"),
        ("gpt_oss", "tree"),
        ("qwen3_moe", "tree"),
        ("opt", "tree"),
        ("bloom", "alone"),
        ("falcon_h1", "alone"),
    ],
)
def test_each_family_gets_what_it_can_compute(family: str, sharing: str, dtype: torch.dtype) -> None:
    check = self_check(make(family).to(dtype))
    assert check.sharing == sharing
    # In half precision a mixture may send a token to another expert.
    assert check.difference < (1e-5 if dtype == torch.float32 else 0.2)
    words = {"tree": "computed once", "alone": "runs by itself"}
    assert words[sharing] in check.sentence


def test_nothing_of_the_model_or_the_random_state_is_changed() -> None:
    module = make("llama").train()
    module.model.layers[0].eval()
    modes = [part.training for part in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    self_check(module)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module.config._attn_implementation == stock_attention(module)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_dropout_of_a_model_in_training_mode_does_not_disturb_the_check() -> None:
    assert self_check(make("gpt2", resid_pdrop=0.5, attn_pdrop=0.5).train()).difference < 1e-5


class Leaky(nn.Module):
    """A layer that lets a little of everything earlier in the row through, as a recurrent state does."""

    def __init__(self, inner: nn.Module, strength: float) -> None:
        super().__init__()
        self.inner, self.strength = inner, strength

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.strength * x.cumsum(dim=1)


def leaky(strength: float) -> PreTrainedModel:
    module = make("llama")
    module.model.layers[0].mlp = Leaky(module.model.layers[0].mlp, strength)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_that_crosses_sequences_is_found_even_below_rounding(dtype: torch.dtype) -> None:
    check = self_check(leaky(1e-5).to(dtype))
    assert check.sharing == "alone"
    assert "other sequences" in check.sentence


def test_a_model_that_disagrees_with_its_own_logits_is_refused() -> None:
    module = make("granite")
    forward = type(module).forward

    def shifted(self: nn.Module, **arguments: object) -> object:
        out = forward(self, **arguments)
        out.logits = out.logits * 1.5
        return out

    module.forward = shifted.__get__(module)
    with pytest.raises(ModelError, match="output head"):
        self_check(module)


def test_a_large_window_that_tree_attention_is_not_told_of_is_refused_for_sharing() -> None:
    module = make("mistral", sliding_window=100)
    assert self_check(module).sharing == "tree"
    for layer in module.model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.config = module.config
        layer.self_attn.forward = without_window(layer.self_attn, forward)
    check = self_check(module)
    assert check.sharing == "alone"
    assert "sliding window of 100" in check.sentence


def without_window(attention: nn.Module, forward):
    """Hide the configuration's window from the attention function while it runs."""

    def run(*args: object, **kwargs: object) -> object:
        window, attention.config.sliding_window = attention.config.sliding_window, None
        try:
            return forward(*args, **kwargs)
        finally:
            attention.config.sliding_window = window

    return run


def test_the_attention_a_model_came_with_is_kept() -> None:
    module = make("llama")
    set_attention(module, "eager")
    self_check(module)
    assert module.config._attn_implementation == "eager"
