"""Completions from a model in training, through transformers' own generation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from truing.core.errors import InputError
from truing.models.language_model import LanguageModel, evaluating

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


def generate(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int,
    end_tokens: Collection[int],
) -> list[list[int]]:
    """Continue each prompt until an end token (which is kept) or `max_new_tokens`; greedily at temperature 0.

    Samples come from the whole distribution: what a checkpoint's generation_config.json says about top-k, top-p or
    repetition is left out, because a policy's log-probs know nothing of it. Adapters in place stay in place; mode,
    attention and the caller's random state come back as they were.
    """
    if not prompts:
        return []
    if any(len(prompt) == 0 for prompt in prompts):
        raise InputError("a prompt to continue is empty; give it at least one token")
    allowed = _room(model, max(len(prompt) for prompt in prompts), max_new_tokens)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(end_tokens, default=0)
    config = _config(allowed, temperature, pad, end_tokens)
    # A model that runs its sequences alone may carry a state that padding would enter.
    groups = [prompts] if model.sharing != "alone" else [[prompt] for prompt in prompts]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), evaluating(model.module):
        torch.manual_seed(seed)
        return [completion for group in groups for completion in _continue(model, group, config, pad, end_tokens)]


def _continue(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    pad: int,
    end_tokens: Collection[int],
) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), width), pad)  # int64 [n, width], prompts at the right
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    with model.stock_attention() as module, torch.no_grad():
        before = module.generation_config
        module.generation_config = config  # otherwise what `config` leaves open is filled from the checkpoint's
        try:
            out = module.generate(
                input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), generation_config=config
            )
        finally:
            module.generation_config = before
    return [_until_end(row, end_tokens) for row in out[:, width:].tolist()]


def _config(max_new_tokens: int, temperature: float, pad: int, end_tokens: Collection[int]) -> GenerationConfig:
    from transformers import GenerationConfig

    ends = sorted(end_tokens) or None
    if temperature == 0.0:
        return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=ends)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        pad_token_id=pad,
        eos_token_id=ends,
    )


def _room(model: LanguageModel, longest: int, wanted: int) -> int:
    limit = model.max_positions
    if limit is None:
        return wanted
    if longest >= limit:
        raise InputError(f"a prompt has {longest} tokens and the model's context ends at {limit}; shorten the prompt")
    return min(wanted, limit - longest)


def _until_end(tokens: list[int], end_tokens: Collection[int]) -> list[int]:
    for index, token in enumerate(tokens):
        if token in end_tokens:
            return tokens[: index + 1]
    return tokens
