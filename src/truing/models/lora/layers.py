"""Linear layers that run one of several named low-rank adapters over a base weight they never copy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from truing.models.lora.settings import AdapterSettings, scaling
from truing.models.nf4 import PackedLinear, PackedWeight, dense, linear


@dataclass(slots=True)
class Selection:
    """Which adapter runs, shared by all adapted layers of a model so that switching is one assignment."""

    name: str | None = None


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The size of one layer's adapter."""

    rank: int
    alpha: float


class FusedProduct(torch.autograd.Function):
    """y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ, with the low-rank part accumulated into the base product.

    Keeps x, x·Aᵀ and references to the parameters for the backward pass; the plain graph makes three tensors of the
    output's size where this makes one. Shapes are flat because an output that is a view could not be changed in
    place by the caller. A and B may be wider (float32) than W and x: the products run in x's type, the gradients of A
    and B are returned in their own. Of a packed W the bytes as they are packed are kept, and unpacked in either pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | PackedWeight,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: float,
    ) -> Tensor:
        """Multiply: x [T, in], weight [out, in], bias [out], lora_a [r, in], lora_b [out, r] → [T, out]."""
        reduced = x @ lora_a.to(x.dtype).t()  # [T, r]
        out = F.linear(x, dense(weight), bias)
        out.addmm_(reduced, lora_b.to(x.dtype).t(), alpha=scale)
        plain = weight if isinstance(weight, Tensor) else None
        ctx.save_for_backward(x, plain, reduced, lora_a, lora_b)
        ctx.packed = weight if plain is None else None
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for x, weight, bias, A and B: only those that are needed."""
        x, plain, reduced, lora_a, lora_b = ctx.saved_tensors
        need_x, need_weight, need_bias, need_a, need_b, _ = ctx.needs_input_grad
        grad_x = grad_a = grad_b = None
        if need_x or need_a:
            grad_reduced = grad @ lora_b.to(grad.dtype)  # [T, r]
            if need_x:
                grad_x = grad @ (plain if ctx.packed is None else ctx.packed.unpacked())
                grad_x.addmm_(grad_reduced, lora_a.to(grad.dtype), alpha=ctx.scale)
            if need_a:
                grad_a = (grad_reduced.t() @ x).to(lora_a.dtype).mul_(ctx.scale)
        if need_b:
            grad_b = (grad.t() @ reduced).to(lora_b.dtype).mul_(ctx.scale)
        grad_weight = grad.t() @ x if need_weight else None
        grad_bias = grad.sum(0) if need_bias else None
        return grad_x, grad_weight, grad_bias, grad_a, grad_b, None


class LowRank(nn.Module):
    """The matrices of one adapter in one layer: A uniform, B zero, so that training starts from the base itself."""

    def __init__(self, layer: AdaptedLinear, plan: LayerPlan, settings: AdapterSettings, generator: torch.Generator):
        super().__init__()
        self.rank, self.alpha = plan.rank, plan.alpha
        self.scale = scaling(plan.rank, plan.alpha, rslora=settings.rslora)
        self.dropout = settings.dropout
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        bound = 1.0 / math.sqrt(layer.in_features)  # Kaiming-uniform with a = √5, as peft draws it
        # Drawn on the CPU, so that a seed means the same start on every device.
        start = torch.empty(plan.rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(start.to(layer.weight.device, dtype))  # [r, in]
        zeros = torch.zeros(layer.out_features, plan.rank, dtype=dtype, device=layer.weight.device)
        self.lora_b = nn.Parameter(zeros)  # [out, r]

    def factors(self) -> tuple[Tensor, Tensor]:
        """The A [r, in] and B [out, r] whose product, scaled, is added to the base weight."""
        return self.lora_a, self.lora_b

    def forward(self, x: Tensor, layer: AdaptedLinear) -> Tensor:
        """The layer's output with this adapter: [..., in] → [..., out]."""
        lora_a, lora_b = self.factors()
        if self._drops() or torch.is_autocast_enabled(x.device.type):
            low = F.linear(F.linear(self._dropped(x), lora_a.to(x.dtype)), lora_b.to(x.dtype))
            return layer.base_product(x) + self.scale * low
        flat = x.reshape(-1, layer.in_features)
        out: Tensor = FusedProduct.apply(flat, layer.stored(), layer.bias, lora_a, lora_b, self.scale)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], layer.out_features)

    def adapted_weight(self, matrix: Tensor) -> Tensor:
        """The base weight with the adapter merged in, in float32 or wider: [out, in] → [out, in]."""
        lora_a, lora_b = self.factors()
        return torch.addmm(matrix.to(lora_a.dtype), lora_b, lora_a, alpha=self.scale)

    def tensors(self) -> dict[str, Tensor]:
        """The trained parameters by the names they have in an adapter file."""
        return {"lora_A.weight": self.lora_a, "lora_B.weight": self.lora_b}

    def _drops(self) -> bool:
        # A frozen adapter is a reference: it must give the same answer twice, whatever mode the model is in.
        return self.dropout > 0 and self.training and self.lora_a.requires_grad

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self._drops() else x


class PissaLowRank(LowRank):
    """A and B start as the principal singular directions of the weight (PiSSA, arXiv:2404.02948).

    The paper takes B₀·A₀ out of the base weight. Here the base stays whole, because other adapters and the reference
    share it, and B₀·A₀ is subtracted from the product instead, as (B − B₀)·A + B₀·(A − A₀): both terms are exactly
    zero at the start, so the first output is the base's to the last bit, and it costs twice the rank.
    """

    start_a: Tensor  # [r, in]
    start_b: Tensor  # [out, r]

    def __init__(self, layer: AdaptedLinear, plan: LayerPlan, settings: AdapterSettings, generator: torch.Generator):
        directions = min(plan.rank, layer.in_features, layer.out_features)
        super().__init__(layer, LayerPlan(directions, plan.alpha), settings, generator)
        left, values, right = torch.linalg.svd(layer.matrix().detach().to(self.lora_a.dtype), full_matrices=False)
        roots = (values[:directions] / self.scale).sqrt()
        with torch.no_grad():
            self.lora_a.copy_(roots[:, None] * right[:directions])
            self.lora_b.copy_(left[:, :directions] * roots)
        self.register_buffer("start_a", self.lora_a.detach().clone())
        self.register_buffer("start_b", self.lora_b.detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        lora_a = torch.cat([self.lora_a, self.lora_a - self.start_a])
        lora_b = torch.cat([self.lora_b - self.start_b, self.start_b], dim=1)
        return lora_a, lora_b


class DoraLowRank(LowRank):
    """A low-rank direction and a trained magnitude: W' = m · (W + s·B·A) / ‖W + s·B·A‖ (DoRA, arXiv:2402.09353).

    The norm of each row is a constant for the gradient (section 4.3 of the paper).
    """

    def __init__(self, layer: AdaptedLinear, plan: LayerPlan, settings: AdapterSettings, generator: torch.Generator):
        super().__init__(layer, plan, settings, generator)
        self.magnitude = nn.Parameter(self._norm(layer.matrix()))  # [out]

    def forward(self, x: Tensor, layer: AdaptedLinear) -> Tensor:
        base = layer.base_product(x)
        ratio = self.magnitude / self._norm(layer.matrix())
        dropped = self._dropped(x)
        low = F.linear(F.linear(dropped, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))
        bare = linear(dropped, layer.stored(), None) if self._drops() else layer.without_bias(base)
        return base + (ratio - 1).to(base.dtype) * bare + (ratio * self.scale).to(base.dtype) * low

    def adapted_weight(self, matrix: Tensor) -> Tensor:
        summed = super().adapted_weight(matrix)
        norm: Tensor = torch.linalg.vector_norm(summed, dim=1)
        return summed * (self.magnitude / norm)[:, None]

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "lora_magnitude_vector": self.magnitude}

    @torch.no_grad()
    def _norm(self, matrix: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(super().adapted_weight(matrix), dim=1)
        return norm  # [out]


class AdaptedLinear(nn.Module):
    """A linear layer that shares its parameters with the plain one it replaces, and runs the selected adapter.

    Without a selected adapter it computes what the plain layer computes, by the same call.
    """

    weight: nn.Parameter | PackedWeight  # as the plain layer stores it
    bias: nn.Parameter | None  # [out]

    def __init__(self, plain: nn.Module, in_features: int, out_features: int, selection: Selection):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = cast("nn.Parameter | PackedWeight", plain.weight)
        self.register_parameter("bias", cast("nn.Parameter | None", plain.bias))
        self.adapters = nn.ModuleDict()
        self._selection = selection
        # In a tuple, so that its parameters are not registered a second time.
        self._plain = (plain,)
        self.train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        adapter = self.selected()
        if adapter is None:
            return self.base_product(x)
        out: Tensor = adapter(x, self)
        return out

    def selected(self) -> LowRank | None:
        """The adapter that runs, if any."""
        name = self._selection.name
        return None if name is None or name not in self.adapters else cast("LowRank", self.adapters[name])

    def stored(self) -> Tensor | PackedWeight:
        """The base weight [out, in] as it is kept, without a copy."""
        return self.weight

    def matrix(self) -> Tensor:
        """The base weight as [out, in]; no copy, unless it is packed."""
        return dense(self.stored())

    def base_product(self, x: Tensor) -> Tensor:
        """What the plain layer computes: [..., in] → [..., out]."""
        return linear(x, self.weight, self.bias)

    def without_bias(self, base: Tensor) -> Tensor:
        """The product alone, of a base product: [..., out]."""
        return base if self.bias is None else base - self.bias

    def plain(self) -> nn.Module:
        """The layer that this one replaced, with the parameters as they are now."""
        plain: Any = self._plain[0]
        plain.weight = self.weight
        plain.register_parameter("bias", self.bias)
        return cast("nn.Module", plain)

    @torch.no_grad()
    def set_matrix(self, matrix: Tensor) -> None:
        """Overwrite the base weight, which must not be packed: any float [out, in]."""
        self.matrix().copy_(matrix)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class AdaptedConv1D(AdaptedLinear):
    """The same over the layer of GPT-2, which stores its weight as [in, out]."""

    def stored(self) -> Tensor:
        return cast("Tensor", self.weight).t()

    def base_product(self, x: Tensor) -> Tensor:
        flat = torch.addmm(cast("Tensor", self.bias), x.reshape(-1, self.in_features), cast("Tensor", self.weight))
        return flat.view(*x.shape[:-1], self.out_features)


KINDS: Mapping[tuple[str, bool], type[LowRank]] = {
    ("default", False): LowRank,
    ("default", True): DoraLowRank,
    ("pissa", False): PissaLowRank,
}
"""The layer for each (init, dora)."""


def adapt(plain: nn.Module, selection: Selection) -> AdaptedLinear:
    """Wrap a linear layer; it must be an `nn.Linear`, a `Conv1D` or a `PackedLinear`."""
    out_features, in_features = sides(plain)
    if isinstance(plain, Conv1D):
        return AdaptedConv1D(plain, in_features, out_features, selection)
    if not isinstance(plain, nn.Linear | PackedLinear):
        raise TypeError(f"cannot adapt a {type(plain).__name__}")
    return AdaptedLinear(plain, in_features, out_features, selection)


def sides(layer: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer, however it stores its weight."""
    rows, columns = cast("Tensor | PackedWeight", layer.weight).shape
    return (columns, rows) if isinstance(layer, Conv1D | AdaptedConv1D) else (rows, columns)


def turned(layer: nn.Module) -> bool:
    """Whether the model's files store a layer's weight as [in, out]."""
    if isinstance(layer.weight, PackedWeight):
        return layer.weight.turned
    return isinstance(layer, Conv1D | AdaptedConv1D)
