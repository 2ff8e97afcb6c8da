"""What is planned: how a model is trained, on what, and the batches that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from truing.data.packing import pack
from truing.models.lora.settings import AdapterSettings
from truing.planner.methods import Method

Base = Literal["fp32", "bf16"]
"""How weights are stored, unless an adapter says that they are packed, and activations."""

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything besides the model and the data that memory depends on."""

    name: str
    method: Method
    adapter: AdapterSettings | None
    base: Base
    device: DeviceKind
    checkpointing: bool = False
    micro_tokens: int = 8192
    new_tokens: int = 64
    """Of a completion in a rollout at most."""
    reward_models: int = 0
    eight_bit: bool = False
    """Whether AdamW's moments are kept in 8 bits."""
    in_backward: bool = False
    """Whether a gradient is used and freed as soon as it is there."""
    share_base: bool = True
    """Whether the roles of a rollout stage are adapters over one base."""

    @property
    def activation(self) -> int:
        """Bytes of a number in activations."""
        return 4 if self.base == "fp32" else 2

    @property
    def packed(self) -> bool:
        """Whether the linear layers of the base are stored in four bits."""
        return self.adapter is not None and self.adapter.base == "nf4"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of data as it lies in a batch."""

    prompt: int
    completions: tuple[int, ...]
    targets: int
    """Supervised tokens of all completions."""
    mismatched: int = 0
    """Tokens of another prompt's answer, which has no gradient."""

    @property
    def tokens(self) -> int:
        """Tokens that a step computes, its prompt once."""
        return self.prompt + sum(self.completions) + self.mismatched

    @property
    def attended(self) -> int:
        """Pairs of a token and one that it sees."""
        prompt = self.prompt * (self.prompt + 1) // 2
        return prompt + sum(n * self.prompt + n * (n + 1) // 2 for n in (*self.completions, self.mismatched) if n)

    def cut(self, micro_tokens: int) -> list[Row]:
        """Halve the completions of a rollout's prompt until each part fits, as training does."""
        half = len(self.completions) // 2
        if self.tokens <= micro_tokens or half == 0:
            return [self]
        sides = self.completions[:half], self.completions[half:]
        return [part for side in sides for part in Row(self.prompt, side, sum(side)).cut(micro_tokens)]


@dataclass(frozen=True, slots=True)
class Micro:
    """What is computed at once."""

    tokens: int
    """Those with a gradient."""
    targets: int
    completions: int
    longest: int
    """Tokens of the longest tree."""
    path: int
    """Tokens of the longest prompt with one completion."""
    squares: int
    """Sum over trees of the square of their tokens."""
    gathered: int
    """Keys that attention on a GPU copies behind the prompts they continue."""

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Micro:
        """Lay rows side by side."""
        kept = [(row, row.tokens - row.mismatched) for row in rows]
        forks = [row for row, _ in kept if len(row.completions) > 1]
        return cls(
            tokens=sum(size for _, size in kept),
            targets=sum(row.targets for row, _ in kept),
            completions=sum(len(row.completions) for row, _ in kept),
            longest=max((size for _, size in kept), default=0),
            path=max((row.prompt + max(row.completions, default=0) for row, _ in kept), default=0),
            squares=sum(size * size for _, size in kept),
            gathered=sum(row.prompt + n for row in forks for n in row.completions),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What the steps of a run compute."""

    heaviest: tuple[Micro, ...]
    """Micro-batches of which one needs the most memory."""
    micros: int
    """Micro-batches of a step at most."""
    tokens: float
    """Of a step on average; so are the next two."""
    targets: float
    attended: float
    steps: int
    prompts: int = 0
    """Of a rollout."""
    prompt: int = 0
    """Tokens of its longest prompt."""

    @property
    def several(self) -> bool:
        """Whether gradients are there already while a later micro-batch is computed."""
        return self.micros > 1

    @classmethod
    def of_steps(cls, steps: Iterable[Sequence[Sequence[Row]]], count: int, **rollout: int) -> Work:
        """Go through steps of micro-batches of rows; `count` is how many steps the run has."""
        most: dict[str, Micro] = {}
        micros, seen = 0, 0
        tokens = targets = attended = 0
        for step in steps:
            seen += 1
            micros = max(micros, len(step))
            for rows in step:
                micro = Micro.of(rows)
                for by, size in (("tokens", micro.tokens), ("targets", micro.targets), ("squares", micro.squares)):
                    if by not in most or size > getattr(most[by], by):
                        most[by] = micro
                tokens += sum(row.tokens for row in rows)
                targets += micro.targets
                attended += sum(row.attended for row in rows)
        each = max(seen, 1)
        heaviest = tuple(dict.fromkeys(most.values()))
        return cls(heaviest, micros, tokens / each, targets / each, attended / each, count, **rollout)


def even_row(method: Method, length: int, new_tokens: int, group: int) -> Row:
    """A row of `length` tokens, half prompt and half completion, in the shape that a method learns from.

    Rollouts have prompts of `length` less what is written.
    """
    if method.rollouts:
        prompt = max(1, length - new_tokens)
        return Row(prompt, (new_tokens,) * group, new_tokens * group)
    completion = max(1, length // 2)
    prompt = max(1, length - completion)
    count = 2 if method.examples == "comparison" else 1
    return Row(prompt, (completion,) * count, completion * count, completion if method.mismatched else 0)


def packed(rows: Sequence[Row], micro_tokens: int) -> list[list[Row]]:
    """A step's rows in micro-batches, as training packs them."""
    return [[rows[i] for i in one] for one in pack([row.tokens for row in rows], micro_tokens)]
