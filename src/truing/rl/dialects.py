"""How each kind of completion server is asked for samples of the whole distribution, and how its answer is read.

All speak `POST /v1/completions`, each in its own way:

    server              prompt      token ids and log-probs in the answer
    vllm                token ids   both, from `return_token_ids` and `logprobs`
    llama.cpp           token ids   both, from `verbose` with `return_tokens`, and `n_probs`
    transformers serve  text        neither

Written against vLLM 0.33, llama.cpp of 2026 and transformers 5.23. Whatever narrows the distribution is sent
switched off, never left out: a server fills what is left out from its own defaults or the checkpoint's
generation_config.json.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from truing.core.errors import InputError
from truing.core.samples import Sampled
from truing.core.text import harmless
from truing.data.tokens import Pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
LogProb = Annotated[float, Field(le=1e-3)]  # rounding may lift a certain token's above 0; a logit is above it by far


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks for."""

    model: str
    prompt: tuple[int, ...]
    """Token ids, at least one."""
    count: int
    max_new_tokens: int
    temperature: float
    seed: int
    """In [0, 2^31)."""


class Dialect(ABC):
    """One kind of server."""

    many: ClassVar[bool]
    """Whether one request may ask for several completions of its prompt."""
    at_once: ClassVar[int | None] = None
    """How many requests it can serve at a time without mixing up their seeds, where there is a limit."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int]) -> None:
        self._pieces = Pieces(tokenizer, frozenset(end_tokens))
        self._tokenizer = tokenizer
        self._ends = frozenset(end_tokens)

    @abstractmethod
    def body(self, ask: Ask) -> dict[str, Any]:
        """The request as JSON."""

    @abstractmethod
    def read(self, answer: bytes, ask: Ask) -> list[Sampled]:
        """The completions of an answer; raises `InputError` where it is not what `body` asked for."""

    def _given(self, ask: Ask, tokens: Sequence[int], logprobs: Sequence[float] | None, finish: str) -> Sampled:
        """A completion whose token ids the server gave, cut behind its first end token.

        The log-probs of a server are those of temperature 1, so at any other they become NaN.
        """
        length = next((n for n, token in enumerate(tokens, start=1) if token in self._ends), len(tokens))
        if not 1 <= len(tokens) <= ask.max_new_tokens:
            raise InputError(f"a completion has {len(tokens)} tokens, expected 1 to {ask.max_new_tokens}")
        ended = tokens[length - 1] in self._ends
        if finish == "stop" and not ended:
            raise InputError(
                f"a completion was ended with token {tokens[-1]}, expected one of the policy's end tokens "
                f"{sorted(self._ends)}; serve the model with the same end tokens"
            )
        known = logprobs is not None and ask.temperature == 1.0
        return Sampled(
            np.asarray(tokens[:length], dtype=np.int32),
            np.asarray(logprobs[:length] if logprobs is not None and known else [np.nan] * length, dtype=np.float32),
            ended,
        )

    def _retokenised(self, text: str, finish: str) -> Sampled:
        """A completion of which the server gave the text alone.

        The ids are those that the tokenizer would choose, which need not be those that were sampled; hence no log-prob.
        """
        tokens = self._pieces.tokenise([(self._pieces.continuing, text)])[0]
        if finish == "stop":
            tokens = [*tokens, self._pieces.eos]
        if not tokens:
            raise InputError("a completion has neither text nor an end, expected at least one token that is text")
        return Sampled(
            np.asarray(tokens, dtype=np.int32), np.full(len(tokens), np.nan, dtype=np.float32), finish == "stop"
        )


class Vllm(Dialect):
    """vLLM. Its ids and log-probs include those of the end token, whatever its text leaves out."""

    many = True

    def body(self, ask: Ask) -> dict[str, Any]:
        return {
            "model": ask.model,
            "prompt": list(ask.prompt),
            "n": ask.count,
            "max_tokens": ask.max_new_tokens,
            "min_tokens": 0,
            "temperature": ask.temperature,
            "seed": ask.seed,  # vLLM gives completion i the seed `seed + i`
            "top_p": 1.0,
            "top_k": -1,  # 0 would do today; earlier versions know -1 alone
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(self._ends),
            "ignore_eos": False,
            "watermarking": False,  # what the server was started with would apply otherwise
            "skip_special_tokens": False,
            "logprobs": 0,  # of the sampled tokens, and no others
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # for versions that have no return_token_ids
        }

    def read(self, answer: bytes, ask: Ask) -> list[Sampled]:
        found = _parse(_VllmAnswer, answer)
        _check_counts(found, ask)
        return [self._sampled(choice, ask) for choice in sorted(found.choices, key=lambda choice: choice.index)]

    def _sampled(self, choice: _VllmChoice, ask: Ask) -> Sampled:
        if choice.prompt_token_ids is not None and tuple(choice.prompt_token_ids) != ask.prompt:
            raise InputError("the prompt came back with other token ids, expected those that were sent")
        tokens = choice.token_ids if choice.token_ids is not None else choice.ids_of_logprobs()
        if tokens is None:
            return self._retokenised(choice.text, choice.finish_reason)
        if choice.logprobs is None:
            return self._given(ask, tokens, None, choice.finish_reason)
        if len(choice.logprobs.token_logprobs) != len(tokens):
            raise InputError(
                f"a completion has {len(tokens)} tokens and {len(choice.logprobs.token_logprobs)} log-probs, "
                "expected as many of both"
            )
        logprobs = [np.nan if value is None else value for value in choice.logprobs.token_logprobs]
        return self._given(ask, tokens, logprobs, choice.finish_reason)


class LlamaCpp(Dialect):
    """llama.cpp's `llama-server`.

    It decides by itself what ends a completion, by the model file's end tokens. Its log-probs leave out tokens that
    end within a character, and then count for nothing here.
    """

    many = False  # `n` is limited by --parallel, and only the first completion of an answer has its token ids

    def body(self, ask: Ask) -> dict[str, Any]:
        return {
            "model": ask.model,
            "prompt": list(ask.prompt),
            "n": 1,
            "max_tokens": ask.max_new_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "samplers": ["temperature"],  # nothing else stands between the logits and the draw
            "dynatemp_range": 0.0,
            "mirostat": 0,
            "ignore_eos": False,
            "n_probs": 1,
            "post_sampling_probs": False,
            "verbose": True,
            "return_tokens": True,
        }

    def read(self, answer: bytes, ask: Ask) -> list[Sampled]:
        found = _parse(_LlamaAnswer, answer)
        _check_counts(found, ask)
        choice = found.choices[0]
        content = choice.logprobs.content if choice.logprobs is not None else []
        ids = [token.id for token in content]
        tokens = found.verbose.tokens if found.verbose is not None else ids
        if len(tokens) != found.usage.completion_tokens:
            raise InputError(
                f"a completion came with {len(tokens)} token ids, expected {found.usage.completion_tokens}, as many as "
                "it says to have written"
            )
        logprobs = [token.logprob for token in content] if ids == tokens else None
        return [self._given(ask, tokens, logprobs, choice.finish_reason)]


class TransformersServe(Dialect):
    """`transformers serve`. It takes and gives text alone, and the seed is that of its whole process.

    A completion that ends with the very last token allowed counts as cut off: the answer does not tell.
    """

    many = False
    at_once = 1

    def body(self, ask: Ask) -> dict[str, Any]:
        config = {
            "max_new_tokens": ask.max_new_tokens,
            "min_new_tokens": 0,
            "do_sample": ask.temperature > 0.0,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "eos_token_id": sorted(self._ends),
            "pad_token_id": self._pieces.eos,
        }
        if ask.temperature > 0.0:
            config |= {"temperature": ask.temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
            config |= {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
        return {
            "model": ask.model,
            "prompt": self._text(ask.prompt),
            "seed": ask.seed,
            "generation_config": json.dumps(config),  # it has no other way to switch top-k off
        }

    def read(self, answer: bytes, ask: Ask) -> list[Sampled]:
        found = _parse(_Answer, answer)
        _check_counts(found, ask)
        return [self._retokenised(choice.text, choice.finish_reason) for choice in found.choices]

    def _text(self, prompt: tuple[int, ...]) -> str:
        """The text that the server will tokenise as this prompt, its tokenizer adding what it adds."""
        for rest in (prompt, prompt[1:]):
            text: str = self._tokenizer.decode(rest, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if tuple(self._tokenizer(text)["input_ids"]) == prompt:
                return text
        raise InputError(
            "this server takes text alone, and a prompt's token ids are not those of its text; "
            "use one that takes token ids: vllm or llama.cpp"
        )


DIALECTS: dict[str, type[Dialect]] = {"vllm": Vllm, "llama.cpp": LlamaCpp, "transformers": TransformersServe}


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")


class _Usage(_Part):
    prompt_tokens: int
    completion_tokens: int


class _Choice(_Part):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]


class _Answer(_Part):
    choices: Sequence[_Choice]
    usage: _Usage


class _VllmLogprobs(_Part):
    tokens: list[str]
    token_logprobs: list[LogProb | None]


class _VllmChoice(_Choice):
    logprobs: _VllmLogprobs | None = None
    token_ids: list[TokenId] | None = None
    prompt_token_ids: list[TokenId] | None = None

    def ids_of_logprobs(self) -> list[int] | None:
        """The ids where the tokens of the log-probs are written as `token_id:7`."""
        names = [token.partition("token_id:") for token in self.logprobs.tokens] if self.logprobs else []
        if not names or any(before or not name.isdecimal() or len(name) > 9 for before, _, name in names):
            return None
        return [int(name) for _, _, name in names]


class _VllmAnswer(_Answer):
    choices: list[_VllmChoice]


class _LlamaToken(_Part):
    id: TokenId
    logprob: LogProb


class _LlamaLogprobs(_Part):
    content: list[_LlamaToken]


class _LlamaChoice(_Choice):
    logprobs: _LlamaLogprobs | None = None


class _LlamaVerbose(_Part):
    tokens: list[TokenId]


class _LlamaAnswer(_Answer):
    choices: list[_LlamaChoice]
    verbose: _LlamaVerbose | None = Field(None, alias="__verbose")


A = TypeVar("A", bound=_Answer)


def _parse(cls: type[A], answer: bytes) -> A:
    try:
        return cls.model_validate_json(answer)
    except ValidationError as invalid:
        problem = invalid.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        said = f"'{place}': {problem['msg']}" if place else problem["msg"]
        raise InputError(f"not the completions that were expected: {harmless(said)[:300]}") from None


def _check_counts(found: _Answer, ask: Ask) -> None:
    if sorted(choice.index for choice in found.choices) != list(range(ask.count)):
        raise InputError(f"{len(found.choices)} completions with other numbers, expected {ask.count}, from 0 up")
    if found.usage.prompt_tokens != len(ask.prompt):
        raise InputError(
            f"the prompt was read as {found.usage.prompt_tokens} tokens, expected {len(ask.prompt)}; "
            "the server's tokenizer is not the policy's"
        )
