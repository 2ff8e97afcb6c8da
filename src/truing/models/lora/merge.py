"""Merging an adapter into its base, and refusing where the merged model would answer differently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from truing.core.errors import AdapterError
from truing.models.lora.adapters import Adapters
from truing.models.lora.layers import AdaptedLinear, LowRank

TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference allowed, as a part of the largest logit, by the type of the base weights."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What merging changed, over all logits of the probe."""

    largest_difference: float
    """Between merged and unmerged logits."""
    tolerance: float
    effect: float
    """Between the logits with the adapter and those of the base: what merging has to preserve."""
    dtype: str
    sequences: int

    @property
    def sentence(self) -> str:
        """One line for a person."""
        return (
            f"merged in {self.dtype}: logits differ by at most {self.largest_difference:.3g} "
            f"(tolerance {self.tolerance:.3g}; the adapter itself moves them by {self.effect:.3g})"
        )


class _MergedPreview(nn.Module):
    """Runs a layer with the weight that merging would write, made anew at every call."""

    def __init__(self, low_rank: LowRank):
        super().__init__()
        self.low_rank = low_rank

    def forward(self, x: Tensor, layer: AdaptedLinear) -> Tensor:
        matrix = layer.matrix()
        return F.linear(x, self.low_rank.adapted_weight(matrix).to(matrix.dtype), layer.bias)


@torch.no_grad()
def merge_adapter(adapters: Adapters, name: str, probe_tokens: Sequence[Sequence[int]]) -> MergeReport:
    """Merge an adapter into the base in float32 and remove it, if the logits of the probe stay what they were.

    The merged model is tried out before any weight changes: refusing, with `AdapterError`, leaves everything as it
    was. The model must run its stock attention, and is put in eval mode for the measurement.
    """
    if not any(len(tokens) for tokens in probe_tokens):
        raise AdapterError("merging needs at least one sequence of token ids to compare the logits on")
    adapters.settings(name)  # an unknown name is an error before anything is computed
    with _evaluated(adapters.model):
        with adapters.use(None):
            base = _logits(adapters, probe_tokens)
            dtype = next(m.weight.dtype for m in adapters.model.modules() if isinstance(m, AdaptedLinear))
        with adapters.use(name):
            adapted = _logits(adapters, probe_tokens)
            with previewed(adapters, name):
                merged = _logits(adapters, probe_tokens)
    report = MergeReport(
        largest_difference=_difference(merged, adapted),
        tolerance=TOLERANCES[dtype] * max(1.0, *(float(logits.abs().max()) for logits in adapted)),
        effect=_difference(adapted, base),
        dtype=str(dtype).removeprefix("torch."),
        sequences=len(adapted),
    )
    if not report.largest_difference <= report.tolerance:  # written so that a NaN is refused
        raise AdapterError(
            f"'{name}' was not {report.sentence}; keep it as an adapter, or load the base in a wider type"
        )
    adapters.merge(name)
    return report


def _logits(adapters: Adapters, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of each sequence on its own: float32 or wider [length, V]."""
    device = adapters.model.get_input_embeddings().weight.device
    found = []
    for tokens in sequences:
        if len(tokens):
            ids = torch.tensor([list(tokens)], device=device)
            logits = adapters.model(input_ids=ids, use_cache=False).logits[0]
            found.append(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    return found


def _difference(left: list[Tensor], right: list[Tensor]) -> float:
    return float(torch.stack([(a - b).abs().max() for a, b in zip(left, right, strict=True)]).max())


@contextmanager
def previewed(adapters: Adapters, name: str) -> Iterator[None]:
    """Run the active adapter as if it were merged, one layer at a time."""
    layers = [m for m in adapters.model.modules() if isinstance(m, AdaptedLinear) and name in m.adapters]
    before = [layer.adapters[name] for layer in layers]
    for layer, low_rank in zip(layers, before, strict=True):
        layer.adapters[name] = _MergedPreview(cast("LowRank", low_rank))
    try:
        yield
    finally:
        for layer, low_rank in zip(layers, before, strict=True):
            layer.adapters[name] = low_rank


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and each back into the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
