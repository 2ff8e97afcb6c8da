"""What a model consists of, from its config.json alone: matrices, vectors, and how many numbers each has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from truing.core.errors import ModelError, suggest
from truing.core.files import read_json
from truing.models.lora.settings import AdapterSettings, matches
from truing.planner.families import FAMILIES, Family

ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "num_experts": "num_local_experts",
}
"""Other names for the same thing: those of GPT-2, and that of newer mixtures of experts."""

MOST_LAYERS, LARGEST = 10_000, 2**32
"""Layers of a model, and its other numbers, at most: a file may say anything."""

SCORE = "score"
"""The head of a reward model or critic."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer of every layer of some kind."""

    name: str
    """The end of its path, as `self_attn.q_proj`."""
    inputs: int
    outputs: int
    bias: bool

    @property
    def numbers(self) -> int:
        """Its weights and biases."""
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Experts:
    """A feed-forward of which each token runs a part."""

    count: int
    active: int
    """Experts that a token runs."""
    inner: int
    hidden: int

    @property
    def numbers(self) -> int:
        """Weights of all experts and of the router."""
        return self.count * (3 * self.hidden * self.inner + self.hidden)

    @property
    def active_numbers(self) -> int:
        """Weights that a token is multiplied by."""
        return self.active * 3 * self.hidden * self.inner + self.count * self.hidden


@dataclass(frozen=True)
class Architecture:
    """The numbers of one model."""

    name: str
    kind: str
    """Its `model_type`."""
    family: Family
    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_width: int
    inner: int
    """Width of the feed-forward."""
    vocabulary: int
    embedding: int
    """Width of the embedding: the model's, but for some OPT."""
    context: int | None
    """Positions that the model was made for."""
    tied: bool
    attention: tuple[Matrix, ...]
    output: Matrix
    feed: tuple[Matrix, ...]
    down: Matrix
    experts: Experts | None
    sparse: frozenset[int]
    """Layers whose feed-forward is `experts`."""
    activation: str
    softcap: bool
    """Whether attention scores are capped, and so computed one by one."""
    logit_cap: bool
    """Whether logits are capped."""
    window: int | None
    """Tokens that a sliding layer sees."""
    final_norm: bool
    affine: bool
    """Whether norms have weights."""
    dtype: str
    """Format of the checkpoint, as config.json states it."""

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.key_heads * self.head_width

    def matrices(self, layer: int) -> tuple[Matrix, ...]:
        """Linear layers of one layer; experts are none, and no adapter goes into them."""
        found = (*self.attention, self.output)
        return found if layer in self.sparse else (*found, *self.feed, self.down)

    def named_matrices(self) -> Iterator[tuple[str, Matrix]]:
        """Every linear layer of the body with its whole path."""
        if self.embedding != self.hidden:
            decoder = self.family.names.layers.rpartition(".")[0]
            yield f"{decoder}.project_in", Matrix("project_in", self.embedding, self.hidden, False)
            yield f"{decoder}.project_out", Matrix("project_out", self.hidden, self.embedding, False)
        for layer in range(self.layers):
            for matrix in self.matrices(layer):
                yield f"{self.family.names.layers}.{layer}.{matrix.name}", matrix

    @cached_property
    def body_numbers(self) -> int:
        """Weights in matrices that every token is multiplied by, without head and embedding."""
        linear = sum(matrix.inputs * matrix.outputs for _, matrix in self.named_matrices())
        return linear + len(self.sparse) * (0 if self.experts is None else self.experts.active_numbers)

    @property
    def head_numbers(self) -> int:
        """Weights of the projection to the vocabulary."""
        return self.vocabulary * self.embedding

    @property
    def norm_numbers(self) -> int:
        """Weights of a norm of the model's width."""
        return 0 if not self.affine else (2 if self.family.norm == "layer" else 1) * self.hidden

    @cached_property
    def embedding_numbers(self) -> int:
        """Embeddings, learned positions and the head over the vocabulary: what 4-bit loading leaves as it is."""
        positions = 0
        if self.family.positions is not None:
            positions = ((self.context or 0) + self.family.positions) * self.hidden
        head = 0 if self.tied else self.head_numbers
        return self.head_numbers + head + positions + (self.vocabulary if self.family.head_bias else 0)

    @cached_property
    def layer_numbers(self) -> tuple[int, ...]:
        """All weights of each layer."""
        vectors = self.family.norms * self.norm_numbers
        if self.family.head_norm == "head":
            vectors += 2 * self.head_width
        elif self.family.head_norm == "whole":
            vectors += self.query + self.keys
        experts = 0 if self.experts is None else self.experts.numbers
        return tuple(
            vectors + sum(m.numbers for m in self.matrices(layer)) + (experts if layer in self.sparse else 0)
            for layer in range(self.layers)
        )

    @cached_property
    def numbers(self) -> int:
        """All weights, shared ones once."""
        projections = 0 if self.embedding == self.hidden else 2 * self.embedding * self.hidden
        last = self.norm_numbers if self.final_norm else 0
        return self.embedding_numbers + sum(self.layer_numbers) + projections + last

    @cached_property
    def quantisable(self) -> int:
        """Weights that 4-bit loading stores in 4 bits: those of the body's linear layers."""
        return sum(matrix.inputs * matrix.outputs for _, matrix in self.named_matrices())

    def adapted(self, adapter: AdapterSettings) -> Iterator[tuple[str, Matrix]]:
        """Linear layers that an adapter goes into, with their paths."""
        patterns = (adapter.targets,) if isinstance(adapter.targets, str) else adapter.targets
        for path, matrix in self.named_matrices():
            chosen = any(pattern == "all-linear" or matches(pattern, path) for pattern in patterns)
            if chosen and not any(matches(pattern, path) for pattern in (*adapter.exclude, *adapter.modules_to_save)):
                yield path, matrix

    def adapter_numbers(self, adapter: AdapterSettings) -> int:
        """What an adapter trains: A, B, DoRA's magnitudes, and the modules that are trained whole."""
        low_rank = sum(
            adapter.rank * (matrix.inputs + matrix.outputs) + (matrix.outputs if adapter.dora else 0)
            for _, matrix in self.adapted(adapter)
        )
        return low_rank + self._saved_numbers(adapter)

    def _saved_numbers(self, adapter: AdapterSettings) -> int:
        """Numbers of `modules_to_save`."""
        known = {path: matrix.numbers for path, matrix in self.named_matrices()}
        body = self.family.names.layers.rpartition(".")[0]
        known |= {"lm_head": self.head_numbers, SCORE: self.hidden}
        known[f"{body}.{self.family.names.embedding}"] = self.head_numbers
        return sum(
            numbers
            for path, numbers in known.items()
            if any(matches(pattern, path) for pattern in adapter.modules_to_save)
        )


def read_architecture(path: Path) -> Architecture:
    """Read a config.json, or that of a model folder; nothing else of the model is looked at."""
    file = path / "config.json" if path.is_dir() else path
    try:
        raw = read_json(file)
    except FileNotFoundError:
        raise ModelError(f"model: there is no {file}; give a model folder or the path of a config.json") from None
    except OSError as failure:
        raise ModelError(f"{file}: cannot be read: {failure}") from None
    except ValueError as failure:
        raise ModelError(f"{file}: not valid JSON: {failure}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{file}: expected a JSON object, found {type(raw).__name__}")
    return architecture(raw, str(file))


def architecture(raw: Mapping[str, Any], where: str) -> Architecture:
    """Understand the content of a config.json; `where` begins every complaint."""
    return _Reader(raw, where).read()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes values out of a config.json and complains about what is not there."""

    raw: Mapping[str, Any]
    where: str

    def read(self) -> Architecture:
        kind = str(self.raw.get("model_type", ""))
        if kind not in FAMILIES:
            raise ModelError(
                f"{self.where}: 'model_type' is '{kind}', which the planner has no layer of{suggest(kind, FAMILIES)}"
            )
        if self.raw.get("qk_layernorm"):
            raise ModelError(f"{self.where}: 'qk_layernorm' is true, which the planner does not know; expected false")
        family = FAMILIES[kind]
        hidden, heads = self.count("hidden_size"), self.count("num_attention_heads")
        key_heads = heads if family.norm == "layer" and kind != "phi" else self.count("num_key_value_heads", heads)
        width = self.count("head_dim", family.head_width or hidden // heads)
        inner = self._inner(kind, hidden)
        layers = self.count("num_hidden_layers")
        query, keys = heads * width, key_heads * width
        bias = self.flag(family.attention_bias, family.biases, kind in ("opt", "gpt_neox"))
        output_bias = self.flag(family.output_bias, family.biases, bias)
        feed_bias = self.flag(family.feed_bias, "enable_bias" if kind == "opt" else "mlp_bias", kind == "opt")
        names = family.names
        sides = (query + 2 * keys,) if family.fused else (query, keys, keys)
        gates = 2 * inner // len(names.feed) if family.gated else inner
        experts = self._experts(kind, hidden)
        return Architecture(
            name=Path(self.where).parent.name or kind,
            kind=kind,
            family=family,
            layers=layers,
            hidden=hidden,
            heads=heads,
            key_heads=key_heads,
            head_width=width,
            inner=inner,
            vocabulary=self.count("vocab_size"),
            embedding=self.count("word_embed_proj_dim", hidden) if kind == "opt" else hidden,
            context=self.count("max_position_embeddings", 0) or None,
            tied=bool(self.raw.get("tie_word_embeddings", family.tied)),
            attention=tuple(Matrix(n, hidden, out, bias) for n, out in zip(names.attention, sides, strict=True)),
            output=Matrix(names.output, query, hidden, output_bias),
            feed=tuple(Matrix(name, hidden, gates, feed_bias) for name in names.feed),
            down=Matrix(names.down, inner, hidden, feed_bias),
            experts=experts,
            sparse=self._sparse(layers) if experts is not None else frozenset(),
            activation=self._activation(family),
            softcap=family.softcap and self.raw.get("attn_logit_softcapping", 50.0) is not None,
            logit_cap=self.raw.get("final_logit_softcapping", 30.0 if kind == "gemma2" else None) is not None,
            window=self.raw.get("sliding_window") if self.raw.get("use_sliding_window", True) else None,
            final_norm=bool(self.raw.get("do_layer_norm_before", True))
            and not self.raw.get("_remove_final_layer_norm", False),
            affine=bool(self.raw.get("layer_norm_elementwise_affine", True)),
            dtype=str(self.raw.get("dtype") or self.raw.get("torch_dtype") or ""),
        )

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number under a key; without a default it must be there."""
        value = self.raw.get(key, self.raw.get(ALIASES.get(key, key)))
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (value == 0 and default is None):
            found = "is missing" if value is None else f"is {value!r}"
            raise ModelError(f"{self.where}: '{key}' {found}; expected a whole number above 0")
        if value > (limit := MOST_LAYERS if key == "num_hidden_layers" else LARGEST):
            raise ModelError(f"{self.where}: '{key}' is over {limit:,}, which no model has")
        return value

    def flag(self, fixed: bool | None, key: str, default: bool) -> bool:
        """What a family fixes, else what a key says."""
        return bool(self.raw.get(key, default)) if fixed is None else fixed

    def _inner(self, kind: str, hidden: int) -> int:
        if kind == "opt":
            return self.count("ffn_dim")
        if kind == "gpt2":
            return self.count("n_inner", 4 * hidden)
        return self.count("intermediate_size")

    def _activation(self, family: Family) -> str:
        for key in ("hidden_activation", "hidden_act", "activation_function"):
            if isinstance(self.raw.get(key), str) and not (key == "hidden_act" and family.norms == 4):
                return str(self.raw[key])
        return family.activation

    def _experts(self, kind: str, hidden: int) -> Experts | None:
        if kind != "qwen3_moe":
            return None
        return Experts(
            self.count("num_experts"), self.count("num_experts_per_tok"), self.count("moe_intermediate_size"), hidden
        )

    def _sparse(self, layers: int) -> frozenset[int]:
        dense = set(self.raw.get("mlp_only_layers") or ())
        step = self.count("decoder_sparse_step", 1)
        return frozenset(layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)
