"""From last hidden states to logits: what each family does besides a matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from truing.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Settings by which a family multiplies its logits (Cohere, Falcon-H1, and others)."""

DIVISOR = "logits_scaling"
"""Granite divides by it; HyperCLOVA X has the same name and multiplies."""

CAP = "final_logit_softcapping"
"""Gemma bends logits to cap·tanh(logits / cap)."""


@dataclass(frozen=True, slots=True, eq=False)
class OutputHead:
    """The last product of a language model and what follows it."""

    module: nn.Module
    """What makes raw logits from hidden states; someone may have put an adapter into it."""
    plain: bool
    """Whether `module` is nothing but `hidden @ weightᵀ + bias`."""
    weight: Tensor  # float [V, d]
    bias: Tensor | None  # float [V]
    scale: float
    softcap: float | None


def output_head(model: PreTrainedModel) -> OutputHead:
    """Return the head of a causal language model.

    The family's extra steps are read from its configuration; the self-check proves the result on the actual model.
    """
    module = model.get_output_embeddings()
    if not isinstance(module, nn.Module):
        raise ModelError(f"{type(model).__name__} has no output head over the vocabulary; truing trains causal models")
    scale, softcap = _extras(model.config.get_text_config())
    plain = type(module) is nn.Linear
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    return OutputHead(module, plain, weight, bias if isinstance(bias, Tensor) else None, scale, softcap)


def attach_score_head(model: PreTrainedModel, name: str) -> None:
    """Give a language model a score head of zeros beside its own, frozen, as sequence classifiers have one."""
    if hasattr(model, name):
        return
    width = int(model.config.get_text_config().hidden_size)
    head = nn.Linear(width, 1, bias=False, device=model.device, dtype=model.dtype)
    nn.init.zeros_(head.weight)
    model.add_module(name, head.requires_grad_(False))


def _extras(config: PretrainedConfig) -> tuple[float, float | None]:
    values = vars(config)
    scale = 1.0
    for name in MULTIPLIERS:
        if values.get(name) is not None:
            scale *= float(values[name])
    if values.get(DIVISOR) is not None:
        factor = float(values[DIVISOR])
        scale = scale * factor if str(config.model_type).startswith("hyperclovax") else scale / factor
    cap = values.get(CAP)
    return scale, None if cap is None else float(cap)
