"""How the supported families build a layer: what follows from a `model_type` besides the numbers of its config.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Norm = Literal["rms", "wide", "centred", "layer"]
"""`rms`: RMSNorm that multiplies by its weight in the model's format; `wide`: one that does so in float32, as Gemma's
and OLMo's; `centred`: Cohere's LayerNorm, written out in float32 and without a bias; `layer`: torch's, with a bias."""

HeadNorm = Literal["none", "head", "whole"]
"""A norm of queries and keys: none, one vector of a head's width, or one as wide as all heads."""


@dataclass(frozen=True, slots=True)
class Names:
    """Where a layer keeps its matrices, as their paths end."""

    layers: str
    """Path of the list of layers."""
    attention: tuple[str, ...]
    """Of query, key and value, or of the one matrix that holds all three."""
    output: str
    feed: tuple[str, ...]
    """Of gate and up, of the one that holds both, or of the only one."""
    down: str
    head: str = "lm_head"
    embedding: str = "embed_tokens"


@dataclass(frozen=True, slots=True)
class Family:
    """What a layer consists of."""

    names: Names
    norm: Norm = "rms"
    norms: int = 2
    """Norms of the model's width in a layer."""
    read: int | None = None
    """Different tensors that those norms read, where several read the same one."""
    entries: int = 2
    """Different tensors that enter attention and feed-forward."""
    first: int = 1
    """Norms that read the layer's input."""
    head_norm: HeadNorm = "none"
    gated: bool = True
    attention_bias: bool | None = None
    """Of query, key and value; None: `attention_bias` of config.json says."""
    output_bias: bool | None = None
    feed_bias: bool | None = None
    """None: `mlp_bias` of config.json says."""
    biases: str = "attention_bias"
    """The key that says so."""
    head_bias: bool = False
    tied: bool = False
    """Where config.json says nothing about `tie_word_embeddings`."""
    activation: str = "silu"
    rotary: bool = True
    positions: int | None = None
    """Rows that a table of learned positions has beside the context; None: there is no such table."""
    softcap: bool = False
    """Whether attention scores may be capped, which fused kernels cannot."""
    head_width: int | None = None
    """Where config.json says nothing about `head_dim`; None: the model's width over its heads."""

    @property
    def fused(self) -> bool:
        """Whether query, key and value are one matrix."""
        return len(self.names.attention) == 1


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LLAMA = Family(
    Names("model.layers", _ATTENTION, "self_attn.o_proj", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
)
_PLAIN = replace(_LLAMA, attention_bias=False, output_bias=False, feed_bias=False)
_QWEN3 = replace(_LLAMA, feed_bias=False, head_norm="head", head_width=128)
_GEMMA = replace(
    _LLAMA, norm="wide", norms=4, feed_bias=False, tied=True, activation="gelu_pytorch_tanh", head_width=256
)
_OLMO = replace(_LLAMA, norm="wide", first=0, feed_bias=False, head_norm="whole")
_LAYER_NORM = Family(_LLAMA.names, norm="layer", gated=False)

FAMILIES = {
    "llama": _LLAMA,
    "granite": _LLAMA,
    "smollm3": replace(_LLAMA, tied=True),
    "mistral": _PLAIN,
    "qwen2": replace(_PLAIN, attention_bias=True),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "phi3": replace(
        _PLAIN,
        names=Names(
            "model.layers", ("self_attn.qkv_proj",), "self_attn.o_proj", ("mlp.gate_up_proj",), "mlp.down_proj"
        ),
    ),
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "gemma2": replace(_GEMMA, softcap=True),
    "gemma3_text": replace(_GEMMA, head_norm="head"),
    "cohere2": replace(_LLAMA, norm="centred", norms=1, entries=1, feed_bias=False, tied=True),
    "gpt2": replace(
        _LAYER_NORM,
        names=Names("transformer.h", ("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj", embedding="wte"),
        attention_bias=True,
        output_bias=True,
        feed_bias=True,
        tied=True,
        activation="gelu_new",
        rotary=False,
        positions=0,
    ),
    "opt": replace(
        _LAYER_NORM,
        names=Names("model.decoder.layers", _ATTENTION, "self_attn.out_proj", ("fc1",), "fc2"),
        biases="enable_bias",
        tied=True,
        activation="relu",
        rotary=False,
        positions=2,
    ),
    "gpt_neox": replace(
        _LAYER_NORM,
        names=Names(
            "gpt_neox.layers",
            ("attention.query_key_value",),
            "attention.dense",
            ("mlp.dense_h_to_4h",),
            "mlp.dense_4h_to_h",
            embedding="embed_in",
        ),
        feed_bias=True,
        read=1,
        first=2,
        activation="gelu",
    ),
    "phi": replace(
        _LAYER_NORM,
        names=Names("model.layers", _ATTENTION, "self_attn.dense", ("mlp.fc1",), "mlp.fc2"),
        norms=1,
        entries=1,
        attention_bias=True,
        output_bias=True,
        feed_bias=True,
        head_bias=True,
        activation="gelu_new",
    ),
}
"""By `model_type`; those whose arithmetic tree attention is known to be exact for."""
