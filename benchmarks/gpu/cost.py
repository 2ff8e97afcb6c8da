"""What a step of training costs: multiply-adds counted twice, from the shape of the model and of the rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a decoder with gated feed-forward layers and grouped key heads."""

    family: str
    """As transformers names it."""
    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int
    tied: bool

    @property
    def body(self) -> int:
        """N: weights of the layers' matrices."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.hidden * self.key_value_heads // self.heads
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)

    @property
    def head(self) -> int:
        """H: weights of the vocabulary's matrix."""
        return self.vocabulary * self.hidden


SHAPES = {
    "qwen2.5-0.5b": Shape("qwen2", 151_936, 896, 4_864, 24, 14, 2, True),
    "llama-3.2-1b": Shape("llama", 128_256, 2_048, 8_192, 16, 32, 8, True),
    "llama-7b": Shape("llama", 32_000, 4_096, 11_008, 32, 32, 32, False),
    "tiny": Shape("llama", 512, 64, 128, 2, 4, 2, True),
}


@dataclass(frozen=True, slots=True)
class Rows:
    """What one step reads: rows of one prompt with as many completions each, all equally long."""

    count: int
    prompt: int
    completion: int
    completions: int
    shared: bool
    """Whether a prompt is computed once for all its completions."""

    @property
    def tokens(self) -> int:
        """T: tokens that the model computes."""
        prompts = 1 if self.shared else self.completions
        return self.count * (prompts * self.prompt + self.completions * self.completion)

    @property
    def read_tokens(self) -> int:
        """Tokens of prompts and completions as an engine without sharing would compute them."""
        return self.count * self.completions * (self.prompt + self.completion)

    @property
    def targets(self) -> int:
        """K: tokens that are predicted."""
        return self.count * self.completions * self.completion

    @property
    def pairs(self) -> int:
        """Queries and keys that meet."""
        prompts = 1 if self.shared else self.completions
        causal = prompts * self.prompt * (self.prompt + 1) // 2
        causal += self.completions * self.completion * (self.completion + 1) // 2
        return self.count * (causal + self.completions * self.prompt * self.completion)


def forward(shape: Shape, rows: Rows) -> int:
    """2NT + A + 2HK, with A = 4·d·L for every pair of query and key."""
    return 2 * shape.body * rows.tokens + attention(shape, rows) + 2 * shape.head * rows.targets


def attention(shape: Shape, rows: Rows) -> int:
    return 4 * shape.hidden * shape.layers * rows.pairs


def lora_step(shape: Shape, rows: Rows, *, reference: bool) -> int:
    """4NT + 3A + 4HK without checkpointing, and a forward pass more for a reference."""
    own = 4 * shape.body * rows.tokens + 3 * attention(shape, rows) + 4 * shape.head * rows.targets
    return own + (forward(shape, rows) if reference else 0)
