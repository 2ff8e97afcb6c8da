"""What a person says of a completion server. Free of torch and of the client, so that a recipe is read without them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from truing.core.settings import Settings


class ServerSettings(Settings):
    """Where completions are sampled from, instead of a model in this process."""

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
        import httpx2  # takes 0.2 s, which a recipe without a server need not wait for

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


class PolicyServerSettings(ServerSettings):
    """A vLLM server that is given the policy's weights before each rollout, and samples in the policy's stead."""

    kind: Literal["vllm"] = "vllm"
    """Which server it is; no other can be given weights while it runs."""
    model: str = Field(min_length=1)
    """The name that it serves the model under; the policy's adapters are called after it."""
    folder: str | None = None
    """Where weights are left for the server, which has to be able to read it; by default `served` in the run
    directory."""
    seen_as: str | None = None
    """That folder's path as the server sees it, where it is another one, as in a container."""
    logprob_gap: float = Field(default=0.3, gt=0.0)
    """Nats a token by which the server's log-probs may differ from the policy's own, as a mean of absolute values,
    before the run is stopped."""
