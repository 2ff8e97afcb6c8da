"""Tiny random models, made from configurations, and adapters on them that already do something."""

from __future__ import annotations

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from truing.models.lora.adapters import Adapters

FAMILIES = ("llama", "gpt2", "qwen2")
VOCABULARY = 48
TOKENS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8], [27, 18, 28, 1, 8, 2, 45, 9]])


def tiny(family: str, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of two blocks: llama without biases, qwen2 with some, gpt2 with transposed weights."""
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "gpt2":
            quiet = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
            model = GPT2LMHeadModel(
                GPT2Config(
                    n_embd=24, n_inner=40, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64, **quiet, **ends
                )
            )
        elif family == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**shape, **ends))
        else:
            model = LlamaForCausalLM(LlamaConfig(**shape, **ends))
        for parameter in model.parameters():  # the initial biases and norms hide mistakes
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.to(dtype).eval()


@torch.no_grad()
def stir(adapters: Adapters, name: str, seed: int = 1, size: float = 0.2) -> None:
    """Move an adapter's parameters away from their start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapters.parameters(name).values():
        parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.clone()


def loss(model: torch.nn.Module) -> torch.Tensor:
    """A smooth function of all logits whose gradient is nowhere zero."""
    out = model(input_ids=TOKENS).logits
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return (out * weights).sum() / 10
