"""Completions from a server that holds a copy of the policy: vLLM, llama.cpp or `transformers serve`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx2
import numpy as np
from pydantic import Field, field_validator

from truing.core.errors import InputError, MachineError
from truing.core.samples import Sampled
from truing.core.settings import Settings
from truing.core.text import harmless
from truing.rl.dialects import DIALECTS, Ask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_PAUSE = 0.5
"""Seconds before the first retry; each further pause is twice as long."""
_CONNECT_SECONDS = 10.0
_BYTES_PER_TOKEN = 4096  # llama.cpp, which says most, writes about 600 for a token
_BYTES_BESIDE = 8 * 2**20

T = TypeVar("T")


class ServerSettings(Settings):
    """Where completions are sampled from, instead of the model in training."""

    kind: Literal["vllm", "llama.cpp", "transformers"]
    """Which server it is. The first two take and give token ids; `transformers serve` knows text alone."""
    url: str
    """Its address, such as `http://localhost:8000`."""
    model: str = Field(min_length=1)
    """The name that it serves the policy under."""
    api_key_from: str | None = Field(None, min_length=1)
    """Name of the environment variable that holds its API key, such as `OPENAI_API_KEY`."""
    timeout: float = Field(600.0, gt=0.0)
    """Seconds that one request may take."""
    retries: int = Field(4, ge=0, le=20)
    """How often a request is sent again after a broken connection, a status 429 or one of 500 and above."""
    concurrency: int = Field(16, ge=1)
    """How many requests are under way at a time."""

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as invalid:
            raise ValueError(f"not a URL: {invalid}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or "%" in parsed.host:
            raise ValueError("expected http:// or https:// and a host, such as http://localhost:8000")
        if parsed.port is not None and not 0 < parsed.port < 2**16:
            raise ValueError("expected a port from 1 to 65535")
        if parsed.userinfo or parsed.query or parsed.fragment:
            raise ValueError("expected no user, password, query or fragment; give a key by api_key_from")
        return str(parsed).rstrip("/").removesuffix("/v1")


class CompletionServer:
    """An `Engine` over `POST {url}/v1/completions`.

    Log-probs are the server's own: of its weights and its arithmetic, at temperature 1. Where it gives none, or the
    temperature is another, they are NaN, and whoever needs them has to compute them. Where it gives no token ids
    either (`transformers serve`), its text is tokenised again, and may come out as other ids than were sampled.

    The same seed gives the same completions as far as the server keeps to it; batching alone may round differently.
    """

    def __init__(
        self, settings: ServerSettings, tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int]
    ) -> None:
        self.settings = settings
        self._dialect = DIALECTS[settings.kind](tokenizer, end_tokens)
        self._url = f"{settings.url}/v1/completions"
        self._key = _key(settings.api_key_from)
        self._has_answered = False

    def sample(
        self, prompts: Sequence[Sequence[int]], *, count: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[Sampled]]:
        """Write `count` completions of each prompt, in the order of the prompts.

        Raises `InputError` where the server refuses or is not what the settings say, `MachineError` where it fails.
        """
        if any(len(prompt) == 0 for prompt in prompts):
            raise InputError("a prompt to continue is empty; give it at least one token")
        in_one = count if self._dialect.many else 1
        asks = [
            Ask(self.settings.model, tuple(prompt), in_one, max_new_tokens, temperature, _seed(seed, row, part))
            for row, prompt in enumerate(prompts)
            for part in range(count // in_one)
        ]
        samples = [sampled for answer in _run(self._all(asks)) for sampled in answer]
        return [samples[row * count : (row + 1) * count] for row in range(len(prompts))]

    async def _all(self, asks: Sequence[Ask]) -> list[list[Sampled]]:
        limit = min(self.settings.concurrency, self._dialect.at_once or self.settings.concurrency)
        free = asyncio.Semaphore(limit)
        # No proxy and no .netrc from the environment: the recipe names the server, and nothing stands between.
        async with httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=limit),
            trust_env=False,
            verify=self.settings.url.startswith("https:"),  # loading certificates takes 25 ms; plain http has none
        ) as client:

            async def one(ask: Ask) -> list[Sampled]:
                async with free:
                    return await self._answer(client, ask)

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(ask)) for ask in asks]
            except BaseExceptionGroup as failed:  # the first to fail cancels the others
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _answer(self, client: httpx2.AsyncClient, ask: Ask) -> list[Sampled]:
        body = json.dumps(self._dialect.body(ask)).encode()
        answer = await self._bytes(client, body, _BYTES_BESIDE + _BYTES_PER_TOKEN * ask.count * ask.max_new_tokens)
        try:
            return self._dialect.read(answer, ask)
        except InputError as problem:
            raise InputError(f"{self._url} ({self.settings.kind}): {problem}") from None

    async def _bytes(self, client: httpx2.AsyncClient, body: bytes, limit: int) -> bytes:
        """The body of a successful answer, after as many tries as the settings allow."""
        found_nobody, trouble = False, ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                await asyncio.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                async with asyncio.timeout(self.settings.timeout):
                    status, answer = await self._post(client, body, limit)
            except TimeoutError:
                raise MachineError(
                    f"{self._url}: no answer in {self.settings.timeout:g} seconds; ask for fewer or shorter "
                    "completions, or raise 'timeout'"
                ) from None
            except httpx2.RequestError as failure:
                found_nobody = isinstance(failure, httpx2.ConnectError | httpx2.ConnectTimeout)
                trouble = harmless(str(failure)) or type(failure).__name__
                continue
            if status == 200:
                self._has_answered = True
                return answer
            found_nobody, trouble = False, f"status {status}: {self._said(answer)}"
            if status != 429 and status < 500:
                raise self._refusal(status, trouble)
        tries = f"{self.settings.retries + 1} tries" if self.settings.retries else "one try"
        if found_nobody and not self._has_answered:
            raise InputError(f"{self._url}: no server found in {tries} ({trouble}); start it, or correct 'url'")
        raise MachineError(f"{self._url}: the server failed in {tries}, the last time with: {trouble}")

    async def _post(self, client: httpx2.AsyncClient, body: bytes, limit: int) -> tuple[int, bytes]:
        answer = bytearray()
        headers = {"Content-Type": "application/json"}
        async with client.stream("POST", self._url, content=body, headers=headers) as response:
            async for piece in response.aiter_bytes():
                answer += piece
                if len(answer) > limit:
                    raise InputError(f"{self._url}: the answer is longer than {limit:,} bytes; is it the right server?")
        return response.status_code, bytes(answer)

    def _refusal(self, status: int, trouble: str) -> InputError:
        if status in (401, 403):
            name = self.settings.api_key_from
            remedy = f"check the key in ${name}" if name else "name the variable that holds its key by 'api_key_from'"
        elif status < 400 or status in (404, 405):
            remedy = f"check 'url' and 'model' ({self.settings.model!r})"
        else:
            remedy = f"check 'kind' ({self.settings.kind}), 'model' ({self.settings.model!r}) and the lengths asked for"
        return InputError(f"{self._url}: refused with {trouble}; {remedy}")

    def _said(self, answer: bytes) -> str:
        """What the server says of an error, short, harmless for a terminal and without the key."""
        text = answer[:10_000].decode(errors="replace")
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, dict):
            said = found.get("error", found.get("detail", found.get("message", found)))
            text = str(said.get("message", said) if isinstance(said, dict) else said)
        if self._key:
            text = text.replace(self._key, "***")
        return harmless(" ".join(text.split()))[:500] or "(nothing said)"


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"api_key_from: the environment variable {variable} is not set; put the server's key there")
    if not key.isascii() or not key.isprintable():
        raise InputError(f"api_key_from: the value of {variable} cannot be a key, it has more than printable ASCII")
    return key


def _seed(*parts: int) -> int:
    """A seed for one request: seeds that merely count up would give a repeated prompt the same completions."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0]) >> 1


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, from a notebook's running loop too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
