"""Completions from a server that holds a copy of the policy: vLLM, llama.cpp or `transformers serve`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2
import numpy as np

from truing.core.errors import InputError, MachineError
from truing.core.samples import Sampled
from truing.core.text import harmless
from truing.rl.dialects import DIALECTS, Ask
from truing.rl.server_settings import ServerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_PAUSE = 0.5
"""Seconds before the first retry; each further pause is twice as long."""
_CONNECT_SECONDS = 10.0
_BYTES_PER_TOKEN = 4096  # llama.cpp, which says most, writes about 600 for a token
_BYTES_BESIDE = 8 * 2**20
PASSING = frozenset({429, 502, 503, 504})
"""What a server answers that is busy or just starting, before it has begun with the request."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Route:
    """Something that a server is asked to do."""

    path: str
    harmless_twice: bool
    """Whether a request may be sent again that the server may have carried out already."""
    remedy: str | None = None
    """What to do where the server refuses; None: what follows from the settings."""

    def may_follow(self, status: int) -> bool:
        """Whether the same request may succeed after an answer with this status."""
        return status in PASSING or (self.harmless_twice and status >= 500)


COMPLETIONS = Route("/v1/completions", harmless_twice=True)


class CompletionServer:
    """Samples over `POST {url}/v1/completions`.

    Log-probs are the server's own: of its weights and its arithmetic, at temperature 1. Where it gives none, or the
    temperature is another, they are NaN, and whoever needs them has to compute them. Where it gives no token ids
    either (`transformers serve`), its text is tokenised again, and may come out as other ids than were sampled.

    The same seed gives the same completions as far as the server keeps to it; batching alone may round differently.
    """

    def __init__(
        self, settings: ServerSettings, tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int]
    ) -> None:
        self.settings = settings
        self.model = settings.model
        """The name of what is sampled from."""
        self._dialect = DIALECTS[settings.kind](tokenizer, end_tokens)
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
            Ask(self.model, tuple(prompt), in_one, max_new_tokens, temperature, _seed(seed, row, part))
            for row, prompt in enumerate(prompts)
            for part in range(count // in_one)
        ]
        samples = [sampled for answer in _run(self._all(asks)) for sampled in answer]
        return [samples[row * count : (row + 1) * count] for row in range(len(prompts))]

    def order(self, route: Route, content: Mapping[str, Any]) -> None:
        """Have the server do something else than to sample; raises as `sample` does."""

        async def once() -> None:
            async with self._client(1) as client:
                await self._bytes(client, route, json.dumps(content).encode(), _BYTES_BESIDE)

        _run(once())

    def _client(self, limit: int) -> httpx2.AsyncClient:
        # No proxy and no .netrc from the environment: the recipe names the server, and nothing stands between.
        return httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=limit),
            trust_env=False,
            verify=self.settings.url.startswith("https:"),  # loading certificates takes 25 ms; plain http has none
        )

    async def _all(self, asks: Sequence[Ask]) -> list[list[Sampled]]:
        limit = min(self.settings.concurrency, self._dialect.at_once or self.settings.concurrency)
        free = asyncio.Semaphore(limit)
        async with self._client(limit) as client:

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
        limit = _BYTES_BESIDE + _BYTES_PER_TOKEN * ask.count * ask.max_new_tokens
        answer = await self._bytes(client, COMPLETIONS, body, limit)
        try:
            return self._dialect.read(answer, ask)
        except InputError as problem:
            raise InputError(f"{self._url(COMPLETIONS)} ({self.settings.kind}): {problem}") from None

    async def _bytes(self, client: httpx2.AsyncClient, route: Route, body: bytes, limit: int) -> bytes:
        """The body of a successful answer, after as many tries as the settings allow."""
        url, trouble, tries = self._url(route), "", 0
        found_nobody = False
        for attempt in range(self.settings.retries + 1):
            if attempt:
                await asyncio.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
            tries = attempt + 1
            try:
                async with asyncio.timeout(self.settings.timeout):
                    status, answer = await _post(client, url, body, limit)
            except TimeoutError:
                raise MachineError(
                    f"{url}: no answer in {self.settings.timeout:g} seconds; ask for fewer or shorter "
                    "completions, or raise 'timeout'"
                ) from None
            except httpx2.RequestError as failure:
                found_nobody = isinstance(failure, httpx2.ConnectError | httpx2.ConnectTimeout)
                trouble = harmless(str(failure)) or type(failure).__name__
                if not found_nobody and not route.harmless_twice:
                    break
                continue
            if status == 200:
                self._has_answered = True
                return answer
            found_nobody, trouble = False, f"status {status}: {self._said(answer)}"
            if not route.may_follow(status):
                raise self._refusal(route, status, trouble)
        tried = f"{tries} tries" if tries > 1 else "one try"
        if found_nobody and not self._has_answered:
            raise InputError(f"{url}: no server found in {tried} ({trouble}); start it, or correct 'url'")
        raise MachineError(f"{url}: the server failed in {tried}, the last time with: {trouble}")

    def _url(self, route: Route) -> str:
        return f"{self.settings.url}{route.path}"

    def _refusal(self, route: Route, status: int, trouble: str) -> InputError:
        if status in (401, 403):
            name = self.settings.api_key_from
            remedy = f"check the key in ${name}" if name else "name the variable that holds its key by 'api_key_from'"
        elif route.remedy is not None:
            remedy = route.remedy
        elif status < 400 or status in (404, 405):
            remedy = f"check 'url' and 'model' ({self.model!r})"
        else:
            remedy = f"check 'kind' ({self.settings.kind}), 'model' ({self.model!r}) and the lengths asked for"
        return InputError(f"{self._url(route)}: refused with {trouble}; {remedy}")

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


async def _post(client: httpx2.AsyncClient, url: str, body: bytes, limit: int) -> tuple[int, bytes]:
    answer = bytearray()
    headers = {"Content-Type": "application/json"}
    async with client.stream("POST", url, content=body, headers=headers) as response:
        async for piece in response.aiter_bytes():
            answer += piece
            if len(answer) > limit:
                raise InputError(f"{url}: the answer is longer than {limit:,} bytes; is it the right server?")
    return response.status_code, bytes(answer)


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
