"""Tiny random models of many families, and what their own full forward says about a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from truing.core.trees import Completion, Tree

VOCAB = 61

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {**COMMON, "num_key_value_heads": 2}
WINDOWED: dict[str, Any] = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "qwen3_moe": {
        **GROUPED,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 1,
    },
    "mistral": {**GROUPED, "sliding_window": 9, "head_dim": 8},
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, **WINDOWED},
    "smollm3": {**GROUPED, "no_rope_layers": [1, 0], "use_sliding_window": False},
    "granite": {**GROUPED, "logits_scaling": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2},
    "gemma2": {
        **GROUPED,
        **WINDOWED,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 0.3,
    },
    "gemma3_text": {**GROUPED, **WINDOWED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "cohere2": {**GROUPED, **WINDOWED, "logit_scale": 0.5},
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "opt": {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 16, "dropout": 0.1},
    "gpt_neox": COMMON,
    "phi": COMMON,
    "bloom": {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt_oss": {
        **GROUPED,
        **WINDOWED,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "falcon_h1": {
        **GROUPED,
        "head_dim": 8,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
        "lm_head_multiplier": 0.6,
    },
    "qwen3_next": {
        **GROUPED,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}


def make(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model in evaluation mode, with weights large enough for a mistake to show."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.float().eval()


def tree(prompt: int, *completions: int, seed: int = 0) -> Tree:
    """Random tokens: a prompt of this length and completions of these, all supervised."""
    rng = np.random.default_rng([seed, prompt, *completions])

    def draw(size: int) -> np.ndarray:
        return rng.integers(3, VOCAB, size).astype(np.int32)

    return Tree(draw(prompt), tuple(Completion(draw(n), np.ones(n, dtype=bool)) for n in completions))


def stock_logprobs(model: PreTrainedModel, trees: Sequence[Tree]) -> Tensor:
    """Log-probs of all supervised tokens from the model's own logits, one sequence at a time: float32 [K]."""
    parts = []
    for branch in trees:
        for completion in branch.completions:
            ids = torch.from_numpy(np.concatenate([branch.prompt, completion.tokens])).long()
            logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
            where = torch.from_numpy(np.flatnonzero(completion.mask)) + len(branch.prompt)
            parts.append(torch.log_softmax(logits[where - 1], dim=-1).gather(1, ids[where, None])[:, 0])
    return torch.cat(parts)
