"""Frozen linear layers whose weight is stored in four bits, and unpacked anew for each product.

NormalFloat4 with double quantisation (QLoRA, arXiv:2305.14314, section 3): 64 weights share a scale, 256 scales share
one of their own, which makes 4.127 bits a weight. bitsandbytes packs and unpacks; its layers are not used, because on
a CPU they turn the weight into another form when they first compute without a gradient.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from truing.core.extras import require

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState
    from transformers import BitsAndBytesConfig, PreTrainedModel

Storage = Literal["nf4"] | None
"""How the base under an adapter is stored; None: in the type that it computes in."""

ARGUMENTS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
"""Of transformers' BitsAndBytesConfig."""

FILE = "base_quantization.json"
"""Lies beside an adapter that was trained over a 4-bit base, and holds `ARGUMENTS`."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A frozen matrix in four bits a number. It is no tensor, but says what adapters ask of one."""

    packed: Tensor  # uint8 [out · in / 2, 1]
    state: QuantState
    turned: bool
    """Whether the model's files store it as [in, out]."""

    @property
    def shape(self) -> torch.Size:
        """Outputs and inputs."""
        return torch.Size(self.state.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix once it is unpacked."""
        return cast("torch.dtype", self.state.dtype)

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, but for the tables of levels that all weights have alike."""
        inner = self.state.state2
        return sum(part.nbytes for part in (self.packed, self.state.absmax, inner.absmax, self.state.offset))

    def unpacked(self) -> Tensor:
        """The matrix itself, made anew: [out, in]."""
        from bitsandbytes.functional import dequantize_4bit

        matrix: Tensor = dequantize_4bit(self.packed, self.state)
        return matrix


def dense(weight: Tensor | PackedWeight) -> Tensor:
    """A weight as a matrix: itself, or unpacked anew."""
    return weight if isinstance(weight, Tensor) else weight.unpacked()


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None) -> Tensor:
    """What a linear layer computes, with either kind of weight: [..., in] → [..., out]."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    out: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Product(torch.autograd.Function):
    """y = x·Wᵀ + b over a packed W, which the backward pass unpacks once more instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.unpacked(), bias)

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_x, _, need_bias = ctx.needs_input_grad
        grad_x = grad @ ctx.weight.unpacked() if need_x else None
        return grad_x, None, grad.flatten(0, -2).sum(0) if need_bias else None


class PackedLinear(nn.Module):
    """A linear layer over a packed weight."""

    bias: nn.Parameter | None  # [out]

    def __init__(self, weight: PackedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def unpacked(self) -> nn.Module:
        """The layer of the model's own kind that computes the same."""
        turned = self.weight.turned
        with torch.device("meta"):
            plain = (
                Conv1D(self.out_features, self.in_features)
                if turned
                else nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
            )
        matrix = self.weight.unpacked()
        plain.weight = nn.Parameter(matrix.t().contiguous() if turned else matrix, requires_grad=False)
        plain.register_parameter("bias", self.bias)
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def unpack(model: nn.Module) -> None:
    """Turn every packed layer of a model without adapters into one of the model's own kind."""
    for path, part in list(model.named_modules()):
        if isinstance(part, PackedLinear):
            model.set_submodule(path, part.unpacked())


def check_installed() -> None:
    """Refuse a 4-bit base where what packs it is missing."""
    require("adapter.base: nf4", ("bitsandbytes", "accelerate"), "qlora")


def quantisation() -> BitsAndBytesConfig:
    """What has transformers pack the linear layers of a model's body while it loads them, one at a time."""
    from transformers import BitsAndBytesConfig

    check_installed()
    return BitsAndBytesConfig(**ARGUMENTS)


def take_over(model: PreTrainedModel) -> None:
    """Replace bitsandbytes' layers by `PackedLinear` over the same bytes; the model is then an ordinary one."""
    from bitsandbytes.nn.modules import Linear4bit

    for path, part in list(model.named_modules()):
        if isinstance(part, Linear4bit):
            stored: Any = part.weight
            turned = issubclass(vars(part)["source_cls"], Conv1D)
            weight = PackedWeight(stored.data, stored.quant_state, turned)
            model.set_submodule(path, PackedLinear(weight, part.bias).train(part.training))
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            # A view of the mapped checkpoint would hold all its pages that were read: 0.2 GB of a model of 135M.
            parameter.data = parameter.data.clone()
    model.hf_quantizer.remove_quantization_config(model)
    vars(model).pop("is_loaded_in_4bit", None)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights as they are stored."""
    plain: int = sum(parameter.nbytes for parameter in model.parameters())
    return plain + sum(weight.nbytes for weight in _packed(model))


def unpacked_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights if none were packed."""
    plain: int = sum(parameter.nbytes for parameter in model.parameters())
    return plain + sum(weight.shape.numel() * weight.dtype.itemsize for weight in _packed(model))


def _packed(model: nn.Module) -> Iterator[PackedWeight]:
    """Every packed weight; an adapted layer has that of the layer it stands for."""
    for part in model.modules():
        weight = vars(part).get("weight")
        if isinstance(weight, PackedWeight):
            yield weight


def write_storage(folder: Path, storage: Storage) -> None:
    """Say beside an adapter what its base was packed with, for whoever serves it; nothing of an ordinary base."""
    if storage is not None:
        (folder / FILE).write_text(json.dumps(ARGUMENTS, indent=2) + "\n", encoding="utf-8")


def storage_of(folder: Path) -> Storage:
    """How the base was stored that an adapter's folder was trained over."""
    return "nf4" if (folder / FILE).is_file() else None


@contextmanager
def quiet_bitsandbytes() -> Iterator[None]:
    """Keep off the terminal what bitsandbytes misses when it is first imported: kernels that are not used here."""
    logger = logging.getLogger("bitsandbytes")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
