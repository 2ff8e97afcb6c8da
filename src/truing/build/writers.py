"""Who writes completions outside of training: a result in this process, or a server that holds a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from truing.build.load_result import RESULT, adapter_base, open_result, result_folder
from truing.build.rewards import Judged, Seat
from truing.core.samples import Sampled
from truing.models.decoding import Choice
from truing.models.loading import load_tokenizer, read_outline
from truing.models.lora.adapters import Adapters
from truing.models.roles import AdapterOverBase
from truing.models.sampling import sample
from truing.rl.completion_server import CompletionServer
from truing.rl.server_settings import ServerSettings

Write = Callable[[Sequence[Sequence[int]], int], list[list[Sampled]]]
"""Samples of prompts (token ids) under a seed, a list a prompt."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How completions are sampled."""

    count: int
    """Of each prompt."""
    max_new_tokens: int
    choice: Choice
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Writer:
    """Who writes completions, and what it knows about its tokens."""

    tokenizer: PreTrainedTokenizerBase
    end_tokens: frozenset[int]
    max_positions: int | None
    judged: Judged
    write: Write


def in_process(run: Path, draw: Draw) -> Writer:
    """The run's model in this process; reward adapters over the same base share its weights."""
    opened = open_result(run)
    own = None if opened.adapters is None else RESULT
    adapters = opened.adapters or Adapters(opened.loaded.module)
    policy = AdapterOverBase(opened.model, adapters, own)

    def write(prompts: Sequence[Sequence[int]], seed: int) -> list[list[Sampled]]:
        with torch.no_grad(), policy.active():
            return sample(
                opened.model,
                prompts,
                count=draw.count,
                max_new_tokens=draw.max_new_tokens,
                choice=draw.choice,
                seed=seed,
                end_tokens=opened.loaded.end_tokens,
            )

    judged = Judged(
        opened.loaded.name,
        opened.loaded.digest,
        opened.tokenizer,
        Seat(opened.model, adapters),
        storage=opened.loaded.storage,
    )
    return Writer(opened.tokenizer, opened.loaded.end_tokens, opened.model.max_positions, judged, write)


def on_server(run: Path, draw: Draw, server: ServerSettings) -> Writer:
    """A server that holds the run's model; here are its tokenizer and its end tokens alone."""
    base = adapter_base(run) or str(result_folder(run))
    outline = read_outline(base)
    tokenizer = load_tokenizer(result_folder(run))
    engine = CompletionServer(server, tokenizer, outline.end_tokens)

    def write(prompts: Sequence[Sequence[int]], seed: int) -> list[list[Sampled]]:
        return engine.sample(
            prompts,
            count=draw.count,
            max_new_tokens=draw.max_new_tokens,
            temperature=draw.choice.temperature,
            seed=seed,
        )

    return Writer(tokenizer, outline.end_tokens, outline.max_positions, Judged(base, None, tokenizer, None), write)
