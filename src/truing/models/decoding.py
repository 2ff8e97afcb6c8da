"""Writing completions over kept keys and values: each prompt computed once, finished rows let go of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from truing.core.batch import Layout, Span, TreeSpans
from truing.core.errors import InputError
from truing.core.samples import Sampled
from truing.models.few_rows import few_rows
from truing.models.kv_cache import Cache, Prefill
from truing.models.language_model import LanguageModel, evaluating
from truing.models.next_token import NextTokens

CACHE_TOKENS = 32_768
"""Tokens whose keys and values may be kept at a time, prompts and completions together."""

WASTE = 8
"""Finished rows are let go of when they are one in so many."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How the next token is chosen. Training samples from the whole distribution: `top_k` and `top_p` are for reading.

    A policy's log-probs know nothing of a cut, and a token that was cut off could never be learned again.
    """

    temperature: float = 1.0
    """0 takes the likeliest token each time."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise InputError(f"temperature is {self.temperature}; expected 0 (the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; expected at least 1, or nothing")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; expected more than 0 and at most 1")

    @property
    def whole(self) -> bool:
        """Whether every token can be chosen with its own probability."""
        return self.temperature > 0 and self.top_k is None and self.top_p == 1.0


@dataclass(frozen=True, slots=True)
class _Job:
    """One prompt and the numbers, among all rows, of those that continue it."""

    prompt: Sequence[int]
    rows: range


@torch.no_grad()
def write(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    count: int,
    max_new_tokens: int,
    choice: Choice,
    seed: int,
    end_tokens: Collection[int],
    cache_tokens: int = CACHE_TOKENS,
    only: Sequence[int] | None = None,
) -> list[list[Sampled]]:
    """Write `count` completions of each prompt, until an end token (which is kept) or `max_new_tokens`.

    `only`, where it is given, are the numbers of the prompts that are meant.
    A row's tokens depend on the seed, its prompt and its number alone, not on what is written beside it. The log-probs
    are those at `choice.temperature` (at 1 where it is 0), before any cut. The caller's random state is left alone.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise InputError("a prompt to continue is empty; give it at least one token")
    total = len(prompts) * count
    draws = torch.rand(total, max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    done: list[Sampled | None] = [None] * total
    ends = torch.tensor(sorted(end_tokens), dtype=torch.int64, device=model.device)
    with evaluating(model.module), few_rows(model.module):
        head = model.next_tokens()
        for wave in _waves(prompts, range(len(prompts)) if only is None else only, count, max_new_tokens, cache_tokens):
            rows = [row for job in wave for row in job.rows]
            written = _Wave(model, head, wave, max_new_tokens, choice, draws[rows].to(model.device), ends).run()
            for row, sampled in zip(rows, written, strict=True):
                done[row] = sampled
    finished = [sampled for sampled in done if sampled is not None]
    return [finished[start : start + count] for start in range(0, len(finished), count)]


def _waves(
    prompts: Sequence[Sequence[int]], only: Sequence[int], count: int, max_new_tokens: int, cache_tokens: int
) -> Iterator[list[_Job]]:
    """Group prompts of like length so that what they may grow to fits the cache; a prompt's rows may be split."""
    wave: list[_Job] = []
    load = 0
    for index in sorted(only, key=lambda i: (-len(prompts[i]), i)):
        prompt = prompts[index]
        at_once = max(1, min(count, (cache_tokens - len(prompt)) // max_new_tokens))
        for start in range(0, count, at_once):
            rows = range(index * count + start, index * count + min(start + at_once, count))
            need = len(prompt) + len(rows) * max_new_tokens
            if wave and load + need > cache_tokens:
                yield wave
                wave, load = [], 0
            wave.append(_Job(prompt, rows))
            load += need
    if wave:
        yield wave


class _Wave:
    """Rows that write their t-th token together."""

    def __init__(
        self,
        model: LanguageModel,
        head: NextTokens,
        jobs: Sequence[_Job],
        max_new_tokens: int,
        choice: Choice,
        draws: Tensor,  # float64 [R, max_new_tokens], uniform in [0, 1)
        ends: Tensor,  # int64 [E]
    ) -> None:
        self._model, self._head, self._jobs = model, head, jobs
        self._limit, self._choice = max_new_tokens, choice
        self._draws, self._ends = draws, ends
        rows = len(draws)
        self._tokens = torch.zeros(rows, max_new_tokens, dtype=torch.int64, device=model.device)
        self._logprobs = torch.zeros(rows, max_new_tokens, dtype=torch.float32, device=model.device)
        self._alive = torch.arange(rows, device=model.device)  # int64 [A], rows still in the cache
        self._every = 1 if model.device.type == "cpu" else 8  # asking a GPU how many have finished makes it wait

    def run(self) -> list[Sampled]:
        """Write until all rows have ended or the limit is reached."""
        hidden, cache = self._prefill()
        self._draw(hidden, 0)
        for step in range(1, self._limit):
            if step % self._every == 0 and not self._let_go(cache, step):
                break
            cache.advance()
            last = self._tokens[self._alive, step - 1]
            self._draw(self._model.body(last, cache.positions, cache), step)
        return self._finished()

    def _prefill(self) -> tuple[Tensor, Cache]:
        """Compute all prompts once: the hidden states that predict each row's first token [R, d], and the cache."""
        spans: list[Span] = []
        for job in self._jobs:
            start = spans[-1].stop if spans else 0
            spans.append(Span(start, start + len(job.prompt)))
        layout = Layout(tuple(TreeSpans(span, ()) for span in spans), spans[-1].stop)
        counts = [len(job.rows) for job in self._jobs]
        plan = Prefill(layout, counts, self._limit - 1, self._model.device)
        tokens = torch.tensor([token for job in self._jobs for token in job.prompt])
        positions = torch.cat([torch.arange(span.size) for span in spans])
        device = self._model.device
        hidden = self._model.body(tokens.to(device), positions.to(device), plan)
        ends = torch.tensor([span.stop - 1 for span in spans], device=device)
        return hidden[ends].repeat_interleave(torch.tensor(counts, device=device), dim=0), plan.cache

    def _draw(self, hidden: Tensor, step: int) -> None:
        """Choose the next token of every row in the cache."""
        choice = self._choice
        logprobs = self._head.logprobs(hidden, choice.temperature or 1.0)  # float32 [A, V]
        if choice.temperature == 0:
            chosen = logprobs.argmax(dim=-1)
        else:
            probs = logprobs.exp() if choice.whole else _cut(logprobs, choice)
            chosen = _inverse(probs, self._draws[self._alive, step])
        self._tokens[self._alive, step] = chosen
        self._logprobs[self._alive, step] = logprobs.gather(1, chosen[:, None]).squeeze(1)

    def _let_go(self, cache: Cache, step: int) -> bool:
        """Drop finished rows once they are many; return whether any row goes on."""
        if not len(self._ends):
            return True
        going = ~torch.isin(self._tokens[self._alive, :step], self._ends).any(dim=1)
        left = int(going.sum())
        if left and len(going) - left >= max(1, len(going) // WASTE):
            kept = going.nonzero().squeeze(1)
            cache.keep(kept)
            self._alive = self._alive[kept]
        return left > 0

    def _finished(self) -> list[Sampled]:
        ended = torch.isin(self._tokens, self._ends) if len(self._ends) else torch.zeros_like(self._tokens).bool()
        found = []
        for tokens, logprobs, stops in zip(
            self._tokens.cpu().numpy().astype(np.int32),
            self._logprobs.cpu().numpy(),
            ended.cpu().numpy(),
            strict=True,
        ):
            over = bool(stops.any())
            size = int(stops.argmax()) + 1 if over else self._limit
            found.append(Sampled(tokens[:size].copy(), logprobs[:size].copy(), over))
        return found


def _inverse(probs: Tensor, draws: Tensor) -> Tensor:
    """Invert the distribution function: float32 [A, V] and uniform float64 [A] → int64 [A].

    In float64, so that the sum over a large vocabulary neither loses rare tokens nor falls short of 1.
    """
    total = probs.cumsum(dim=-1, dtype=torch.float64)
    found = torch.searchsorted(total, (draws * total[:, -1])[:, None], right=True).squeeze(1)
    return found.clamp_max(probs.shape[1] - 1)


def _cut(logprobs: Tensor, choice: Choice) -> Tensor:
    """Probabilities of which only the likeliest are left, not renormalised: float32 [A, V]."""
    ordered, where = logprobs.exp().sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= choice.top_p, 0.0)
    if choice.top_k is not None:
        ordered[:, choice.top_k :] = 0.0
    return torch.zeros_like(ordered).scatter_(1, where, ordered)
