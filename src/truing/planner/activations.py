"""What autograd keeps of a layer for its backward pass, operation by operation, in bytes of a token.

Nothing here is fitted: each number is a tensor that some operation of the layer saves, as transformers writes it and as
this package's attention and LoRA run it. A tensor that two operations save counts once.
"""

from __future__ import annotations

from dataclasses import dataclass

from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import Architecture, Matrix

WIDE = 4
"""Bytes of a float32."""

INDEX = 8
"""Bytes of an int64."""

FEED_KEPT = {"relu": 1, "silu": 2, "gelu": 2, "gelu_pytorch_tanh": 2, "gelu_new": 5}
"""Tensors as wide as the feed-forward that an activation and the product behind it keep, of one input: ReLU its output
alone, the fused ones input and output, GELU written out in Python three more."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes a token that a layer keeps, in the order in which the backward pass gives them back."""

    norms: int
    attention: int
    feed: int
    """Without what the last matrix reads."""
    product: int
    """What the last matrix reads."""

    @property
    def all(self) -> int:
        return self.norms + self.attention + self.feed + self.product


@dataclass(frozen=True, slots=True)
class Formats:
    """How numbers are stored while training."""

    activation: int
    """Bytes of a number in activations: 4 in fp32, 2 in bf16."""
    fused_cpu: bool
    """Whether attention is the one function that keeps its log-sum-exps, and no copies of parts."""


def kept_of_layer(
    model: Architecture, layer: int, adapter: AdapterSettings | None, formats: Formats, *, forked: bool = False
) -> Kept:
    """What one layer keeps of a token; `forked` where several completions share a prompt on a GPU."""
    e = formats.activation
    whole = adapter is None
    norms = model.family.norms * _norm(model, model.hidden, 1, e, trained=whole)
    if model.family.read is not None:
        norms -= (model.family.norms - model.family.read) * model.hidden * e
    attention = _attention(model, formats, forked=forked) + _head_norms(model, e, trained=whole)
    feed, product = _feed(model, layer, e, trained=whole)
    attention += (model.family.entries - 1) * model.hidden * e
    if whole or layer not in model.sparse:  # a router that is not trained keeps nothing
        feed += model.hidden * e
    if adapter is not None:
        low = _low_rank(model, layer, adapter, e)
        attention, feed = attention + low[0], feed + low[1]
    return Kept(norms, attention, feed, product)


def not_kept_at_the_bottom(model: Architecture, adapter: AdapterSettings | None, formats: Formats) -> int:
    """Bytes a token that the first layer does not keep under an adapter: nothing below it has a gradient."""
    if adapter is None or model.family.first == 0 or model.embedding != model.hidden:
        return 0
    one = _norm(model, model.hidden, 1, formats.activation, trained=False)
    shared = (model.family.first - 1) * model.hidden * formats.activation if model.family.read is not None else 0
    return model.family.first * one - shared


def kept_outside(model: Architecture, formats: Formats) -> int:
    """Bytes a token kept outside the layers: token ids, rotary angles, what an embedding's projections read."""
    e = formats.activation
    angles = 2 * model.head_width * e if model.family.rotary else 0
    places = INDEX if model.family.positions is not None else 0
    projections = (model.embedding + model.hidden) * e if model.embedding != model.hidden else 0
    return INDEX + places + projections + angles


def kept_by_last_norm(model: Architecture, adapter: AdapterSettings | None, formats: Formats) -> int:
    """Bytes a token that the norm behind the layers keeps; given back before the last layer's backward pass."""
    return _norm(model, model.hidden, 1, formats.activation, trained=adapter is None) if model.final_norm else 0


def input_is_kept(model: Architecture, formats: Formats) -> bool:
    """Whether a layer's first norm keeps the layer's very input, and no copy of it in float32."""
    if model.family.first == 0 or model.family.norm == "centred":
        return False
    return model.family.norm == "layer" or formats.activation == WIDE


def _norm(model: Architecture, width: int, groups: int, e: int, *, trained: bool) -> int:
    """A norm's float32 copy of its input, its statistics, and the normalised numbers where its weight is trained."""
    match model.family.norm:
        case "layer":
            return width * e + 2 * groups * e
        case "centred":
            return (3 if trained else 2) * width * WIDE + groups * WIDE
        case "wide":
            return (2 if trained else 1) * width * WIDE + groups * WIDE
        case "rms":
            return width * WIDE + (width * e if trained else 0) + groups * WIDE


def _head_norms(model: Architecture, e: int, *, trained: bool) -> int:
    if model.family.head_norm == "none":
        return 0
    by_head = model.family.head_norm == "head"
    return sum(
        _norm(model, width, groups if by_head else 1, e, trained=trained)
        for width, groups in ((model.query, model.heads), (model.keys, model.key_heads))
    )


def _attention(model: Architecture, formats: Formats, *, forked: bool) -> int:
    """Query, key and value as they are attended with, the result, and its log-sum-exps."""
    e = formats.activation
    if model.softcap:  # explicit scores are computed again; keys and values are repeated for each query head
        return 4 * model.query * e
    # Rotation makes new queries and keys, so that values cut from one matrix keep all of it.
    rotated = model.query + model.keys if model.family.fused and model.family.rotary else 0
    kept = (2 * model.query + 2 * model.keys + rotated) * e + model.heads * WIDE
    if not formats.fused_cpu:
        kept += model.query * e  # the parts that the result is put together of
        kept += 2 * model.keys * e if forked else 0  # keys and values gathered behind a prompt
    return kept


def _feed(model: Architecture, layer: int, e: int, *, trained: bool) -> tuple[int, int]:
    """What the feed-forward keeps between its matrices, and what its last matrix reads."""
    if layer in model.sparse and model.experts is not None:
        return _experts(model, e, trained=trained)
    inputs = FEED_KEPT.get(model.activation, 2) - (0 if model.family.gated else 1)
    gate = 1 if model.family.gated else 0
    return (inputs + gate) * model.inner * e, model.inner * e


def _experts(model: Architecture, e: int, *, trained: bool) -> tuple[int, int]:
    """Rows of all experts that a token runs, sorted by expert, and how they were sorted."""
    assert model.experts is not None
    experts = model.experts
    rows = 3 * experts.inner + model.hidden + ((experts.inner + model.hidden) if trained else 0)
    return experts.active * (rows * e + e + 4 * INDEX) + experts.count * WIDE, 0


def _low_rank(model: Architecture, layer: int, adapter: AdapterSettings, e: int) -> tuple[int, int]:
    """What adapters keep beside the input of their layer: attention's, and the feed-forward's."""
    prefix = f"{model.family.names.layers}.{layer}."
    own = {path.removeprefix(prefix): matrix for path, matrix in model.adapted(adapter) if path.startswith(prefix)}
    first = {matrix.name for matrix in (*model.attention, model.output)}
    return (
        sum(_of_adapter(matrix, adapter, e) for name, matrix in own.items() if name in first),
        sum(_of_adapter(matrix, adapter, e) for name, matrix in own.items() if name not in first),
    )


def _of_adapter(matrix: Matrix, adapter: AdapterSettings, e: int) -> int:
    kept = adapter.rank * e * (2 if adapter.init == "pissa" else 1)
    if adapter.dropout > 0:
        kept += matrix.inputs * (e + 1)  # the input with holes, and where they are
    if adapter.dora:
        kept += 2 * matrix.outputs * e  # both products that magnitudes multiply
    return kept
