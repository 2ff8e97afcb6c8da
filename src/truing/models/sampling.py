"""The one door to completions: over kept keys and values where the model allows it, else through transformers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from truing.core.errors import InputError
from truing.core.samples import Sampled
from truing.core.trees import Completion, Tree
from truing.models.decoding import Choice, write
from truing.models.language_model import LanguageModel, evaluating

if TYPE_CHECKING:
    from transformers import GenerationConfig


def sample(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    count: int = 1,
    max_new_tokens: int,
    choice: Choice,
    seed: int,
    end_tokens: Collection[int],
    only: Sequence[int] | None = None,
) -> list[list[Sampled]]:
    """Write `count` completions of each prompt, until an end token (which is kept) or `max_new_tokens`.

    Where `only` some are asked for, by their numbers, those are the same as among all: to the last token where this
    project writes them, and not where transformers does.

    What a checkpoint's generation_config.json says about top-k, top-p or repetition is left out, because a policy's
    log-probs know nothing of it. Adapters in place stay in place; mode, attention and the caller's random state come
    back as they were. A context too short for a prompt is an InputError; one that ends early cuts what is written.
    """
    if not prompts or (only is not None and not only):
        return []
    if any(len(prompt) == 0 for prompt in prompts):
        raise InputError("a prompt to continue is empty; give it at least one token")
    longest = max(len(prompt) for prompt in prompts)
    allowed = _room(model, longest, max_new_tokens)
    if model.caches and longest + allowed <= (model.exact_length or longest + allowed):
        return write(
            model,
            prompts,
            count=count,
            max_new_tokens=allowed,
            choice=choice,
            seed=seed,
            end_tokens=end_tokens,
            only=only,
        )
    if only is not None:
        prompts, seed = [prompts[index] for index in only], seed + only[0]
    written = _through_transformers(model, prompts, count, _config(allowed, choice, end_tokens), seed, end_tokens)
    return _with_logprobs(model, prompts, written, choice, end_tokens)


def _through_transformers(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    count: int,
    config: GenerationConfig,
    seed: int,
    end_tokens: Collection[int],
) -> list[list[list[int]]]:
    """Token ids by prompt and sample."""
    # A model that runs its sequences alone may carry a state that padding would enter.
    groups = [prompts] if model.sharing != "alone" else [[prompt] for prompt in prompts]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), evaluating(model.module):
        torch.manual_seed(seed)
        rows = [
            row
            for group in groups
            for row in _continue(model, [p for p in group for _ in range(count)], config, end_tokens)
        ]
    return [rows[start : start + count] for start in range(0, len(rows), count)]


def _continue(
    model: LanguageModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, end_tokens: Collection[int]
) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), width), int(config.pad_token_id))  # int64 [n, width], prompts at the right
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


def _with_logprobs(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    written: Sequence[Sequence[Sequence[int]]],
    choice: Choice,
    end_tokens: Collection[int],
) -> list[list[Sampled]]:
    """Log-probs of what transformers wrote, from a forward pass of one prompt at a time."""
    found = []
    for prompt, rows in zip(prompts, written, strict=True):
        tree = Tree(np.asarray(prompt, dtype=np.int32), tuple(_completion(row) for row in rows))
        with torch.no_grad():
            logprobs = model.outputs(model.collate([tree]), temperature=choice.temperature or 1.0).logprobs
        pieces = iter(torch.split(logprobs.cpu(), [len(row) for row in rows]))
        found.append(
            [
                Sampled(completion.tokens, next(pieces).numpy(), row[-1] in end_tokens)
                for completion, row in zip(tree.completions, rows, strict=True)
            ]
        )
    return found


def _completion(tokens: Sequence[int]) -> Completion:
    return Completion(np.asarray(tokens, dtype=np.int32), np.ones(len(tokens), dtype=np.bool_))


def _config(max_new_tokens: int, choice: Choice, end_tokens: Collection[int]) -> GenerationConfig:
    from transformers import GenerationConfig

    ends = sorted(end_tokens) or None
    pad = min(end_tokens, default=0)
    if choice.temperature == 0.0:
        return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=ends)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=choice.temperature,
        top_k=choice.top_k or 0,
        top_p=choice.top_p,
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
