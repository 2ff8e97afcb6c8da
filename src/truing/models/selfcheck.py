"""Does this model compute on trees what it computes alone? Tried on the model itself, at start-up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from truing.core.batch import Batch, Outputs
from truing.core.errors import ModelError
from truing.core.trees import Completion, Tree
from truing.models.language_model import LanguageModel, Sharing, evaluating, set_attention, stock_attention
from truing.models.loading import SCORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT = 12
COMPLETIONS = (7, 11, 4)
SECOND = (5, (6, 3))
"""A second tree, so that a state which crosses from tree to tree shows."""

CHECKABLE_WINDOW = 64
"""A sliding window up to here is crossed by the check; of a larger one, only that tree attention is told of it."""

TOLERANCE = 1e-3
"""Largest difference of a log-prob allowed in float32, in nats; faults seen so far made 1e-2 and more."""

HALF_TOLERANCE = 0.1
"""The same in half precision, unless the model's own two attentions differ by more than a quarter of it."""

FAILURES = (ModelError, TypeError, ValueError, KeyError, IndexError, RuntimeError)
"""What a model raises that cannot take a batch of trees."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """How the model may be run, and how far that was from its own full forward pass."""

    sharing: Sharing
    difference: float
    """Largest difference of a log-prob, in nats."""
    sentence: str
    slowed: bool = False
    """Whether a kernel of this device that takes a whole batch was refused; the sentence says why."""


@dataclass(frozen=True, slots=True)
class _Trial:
    difference: float
    problem: str
    """Empty, or what went wrong besides."""
    refused: tuple[str, ...] = ()
    """Why kernels that take a whole batch were not used."""


def self_check(module: PreTrainedModel) -> SelfCheck:
    """Try sharing prompts, then packing, then one sequence at a time; return the first that agrees with the model.

    Leaves mode, gradients, attention and random state as they were. Raises ModelError if even a sequence by itself
    disagrees with the model's own logits: then its head does something that truing does not know.
    """
    attention = module.config._attn_implementation
    with evaluating(module), torch.no_grad(), _telling_head(module):
        try:
            trees = _trees(module)
            set_attention(module, stock_attention(module))
            expected = _own_figures(module, trees)
            tolerance = _tolerance(module, trees, expected)
            reasons: list[str] = []
            for sharing in ("tree", "packed", "alone"):
                trial = _try(module, sharing, trees, expected)
                if not trial.problem and trial.difference <= tolerance:
                    sentence = "; ".join([_sentence(module, sharing, trial, reasons), *trial.refused])
                    return SelfCheck(sharing, trial.difference, sentence, bool(trial.refused))
                reasons.append(trial.problem or f"log-probs differ by {trial.difference:.2g}")
        finally:
            if module.config._attn_implementation != attention:
                set_attention(module, attention)
    raise ModelError(
        f"{type(module).__name__}: {reasons[-1]} from the model's own when each sequence runs by itself "
        f"(at most {tolerance:.2g} expected); its output head does something unknown to truing, which cannot train it"
    )


def _trees(module: PreTrainedModel) -> list[Tree]:
    """Two trees of random tokens, the first one small."""
    config = module.config.get_text_config()
    values = vars(config)
    window = values.get("sliding_window")
    prompt = PROMPT
    if window is not None and window <= CHECKABLE_WINDOW:
        prompt = max(PROMPT, window - 3)
    room = values.get("max_position_embeddings") or 2048
    prompt = max(1, min(prompt, room - max(COMPLETIONS)))
    rng = np.random.default_rng(20)
    vocabulary = int(module.get_input_embeddings().weight.shape[0])

    def draw(size: int) -> np.ndarray:
        # Special tokens, which some models treat apart, stand at either end of a vocabulary.
        return rng.integers(vocabulary // 8, max(vocabulary // 2, vocabulary // 8 + 1), size).astype(np.int32)

    def completions(sizes: Sequence[int]) -> tuple[Completion, ...]:
        return tuple(Completion(draw(size), np.ones(size, dtype=bool)) for size in sizes)

    return [Tree(draw(SECOND[0]), completions(SECOND[1])), Tree(draw(prompt), completions(COMPLETIONS))]


@contextmanager
def _telling_head(module: PreTrainedModel) -> Iterator[None]:
    """Give a new reward model's head, which is zero and would agree with anything, some weights for a while."""
    head = getattr(module, SCORE, None)
    if not isinstance(head, nn.Linear) or bool(head.weight.any()):
        yield
        return
    generator = torch.Generator().manual_seed(0)
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / head.in_features**0.5)
    try:
        yield
    finally:
        head.weight.zero_()


def _figures(outputs: Outputs) -> Tensor:
    """What a model says of a batch: log-probs of its targets [K], or scores of its completions [C]."""
    return outputs.logprobs if outputs.scores is None else outputs.scores


def _own_figures(module: PreTrainedModel, trees: Sequence[Tree]) -> Tensor:
    """The same from the model's own full forward pass, one sequence at a time: float32."""
    parts = []
    for tree in trees:
        for completion in tree.completions:
            tokens = torch.from_numpy(np.concatenate([tree.prompt, completion.tokens])).long().to(module.device)
            logits = module(input_ids=tokens[None], use_cache=False).logits[0]
            if logits.ndim == 1:  # a classifier's, at the last token
                parts.append(logits.float())
                continue
            first = len(tree.prompt)
            logprobs = torch.log_softmax(logits[first - 1 : -1].float(), dim=-1)
            parts.append(logprobs.gather(1, tokens[first:, None]).squeeze(1))
    return torch.cat(parts)


def _tolerance(module: PreTrainedModel, trees: Sequence[Tree], expected: Tensor) -> float:
    """What rounding alone may do: in half precision, four times what lies between two of the model's own attentions."""
    if module.dtype in (torch.float32, torch.float64):
        return TOLERANCE
    stock = module.config._attn_implementation
    if stock == "eager" or not module._can_set_attn_implementation():
        return HALF_TOLERANCE
    set_attention(module, "eager")
    noise = float((_own_figures(module, trees) - expected).abs().max())
    set_attention(module, stock)
    return max(HALF_TOLERANCE, 4 * noise)


def _try(module: PreTrainedModel, sharing: Sharing, trees: Sequence[Tree], expected: Tensor) -> _Trial:
    try:
        model = LanguageModel(module, sharing=sharing)
        batch = model.collate(trees)
        difference = float((_figures(model.outputs(batch)) - expected).abs().max())
        # A model that gives NaN agrees with nothing.
        difference = difference if math.isfinite(difference) else math.inf
        if sharing == "alone":
            return _Trial(difference, "")
        problem = _leak(model, batch) or _missed_window(module, model.windows)
        return _Trial(difference, problem, tuple(sorted(model.refused)))
    except torch.OutOfMemoryError:
        raise
    except FAILURES as failure:
        return _Trial(math.inf, f"it refuses such a batch ({_first_line(failure)})")


def _leak(model: LanguageModel, batch: Batch) -> str:
    """Say so if the batch's last completion depends on a token it must not see.

    Its log-probs must have a gradient of exactly zero there. This finds a small leak that rounding would hide in half
    precision, and is not fooled by a mixture of experts, whose rounding depends on what else is in the batch.
    """
    embedded: list[Tensor] = []

    def capture(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.module.get_input_embeddings().register_forward_hook(capture)
    try:
        with torch.enable_grad():
            last = _figures(model.outputs(batch))[-(1 if model.scores else batch.target_counts[-1]) :]
            gradient = torch.autograd.grad(last.sum(), embedded[0])[0][0]  # float [T, d]
    finally:
        hook.remove()
    tree = batch.layout.trees[-1]
    own = tree.completions[-1]
    gradient[tree.prompt.start : tree.prompt.stop] = 0
    gradient[own.start : own.stop] = 0
    return "a completion depends on tokens of other sequences" if bool((gradient != 0).any()) else ""


def _missed_window(module: PreTrainedModel, seen: set[int]) -> str:
    """Name a limit on attention that the configuration states and that never reached tree attention."""
    values: dict[str, Any] = vars(module.config.get_text_config())
    kinds = values.get("layer_types") or ()
    if "chunked_attention" in kinds:
        return "some layers attend within fixed chunks"
    window = values.get("sliding_window")
    windowed = "sliding_attention" in kinds if kinds else values.get("use_sliding_window", True)
    if window and windowed and window not in seen:
        return f"its sliding window of {window} tokens is not told to the attention function"
    return ""


def _sentence(module: PreTrainedModel, sharing: Sharing, trial: _Trial, reasons: Sequence[str]) -> str:
    name = type(module).__name__
    agrees = f"log-probs agree with the model's own to {trial.difference:.1g}"
    if sharing == "tree":
        return f"{name}: each prompt is computed once for all its completions; {agrees}"
    if sharing == "packed":
        return f"{name}: sequences are packed, each with its own prompt (with shared prompts {reasons[0]}); {agrees}"
    return f"{name}: each sequence runs by itself, which is exact and slow (when packed, {reasons[1]}); {agrees}"


def _first_line(failure: Exception) -> str:
    text = str(failure).strip() or type(failure).__name__
    return text.splitlines()[0][:160]
