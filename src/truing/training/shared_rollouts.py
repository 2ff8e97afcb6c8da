"""A rollout by several ranks: each writes, scores and annotates a part, and all of them get the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from truing.core.batch import Batch
from truing.core.samples import Sampled
from truing.rl.engine import RoleEngine
from truing.rl.rewards import Answers, Reward
from truing.training.dealing import deal
from truing.training.ranks import Ranks


@dataclass(frozen=True, slots=True)
class SharedEngine:
    """The policy of every rank, each for its part of the prompts."""

    engine: RoleEngine
    ranks: Ranks

    def sample(
        self, prompts: Sequence[Sequence[int]], *, count: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[Sampled]]:
        hands = deal([len(prompt) + count * max_new_tokens for prompt in prompts], self.ranks.world)
        own = self.engine.sample(
            prompts,
            count=count,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            only=hands[self.ranks.rank],
        )
        parts = [_unpacked(part, count) for part in self.ranks.gathered(_packed(own))]
        whole = {i: group for hand, part in zip(hands, parts, strict=True) for i, group in zip(hand, part, strict=True)}
        return [whole[index] for index in range(len(prompts))]

    def figures(self) -> dict[str, float]:
        return self.engine.figures()

    def close(self) -> None:
        self.engine.close()


def _packed(groups: Sequence[Sequence[Sampled]]) -> dict[str, Tensor]:
    rows = [row for group in groups for row in group]
    return {
        "tokens": torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *(row.tokens for row in rows)])),
        "logprobs": torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *(row.logprobs for row in rows)])),
        "sizes": torch.tensor([len(row.tokens) for row in rows], dtype=torch.int64),
        "ended": torch.tensor([row.ended for row in rows], dtype=torch.bool),
    }


def _unpacked(part: Mapping[str, Tensor], count: int) -> list[list[Sampled]]:
    ends = np.cumsum(part["sizes"].numpy())[:-1]
    columns = zip(
        np.split(part["tokens"].numpy(), ends), np.split(part["logprobs"].numpy(), ends), part["ended"], strict=True
    )
    rows = [Sampled(tokens, logprobs, bool(ended)) for tokens, logprobs, ended in columns] if len(part["ended"]) else []
    return [rows[start : start + count] for start in range(0, len(rows), count)]


@dataclass(slots=True, eq=False)
class SharedReward:
    """A reward model of which every rank scores a part of the prompts' completions."""

    reward: Reward
    ranks: Ranks

    @property
    def name(self) -> str:
        return self.reward.name

    @name.setter
    def name(self, name: str) -> None:
        self.reward.name = name

    def __call__(self, answers: Answers) -> list[float]:
        hands = deal([tree.size for tree in answers.trees], self.ranks.world)
        starts = np.cumsum([0, *(len(tree.completions) for tree in answers.trees)])
        places = [[int(c) for tree in hand for c in range(starts[tree], starts[tree + 1])] for hand in hands]
        mine = hands[self.ranks.rank]
        found = self.reward(_part(answers, mine, places[self.ranks.rank])) if mine else []
        scores: dict[int, float] = {}
        for of_rank, own in zip(places, self.ranks.everyone(found), strict=True):
            scores |= dict(zip(of_rank, own, strict=True))
        return [scores[place] for place in range(len(answers.completions))]

    def close(self) -> None:
        self.reward.close()


def _part(answers: Answers, trees: Sequence[int], places: Sequence[int]) -> Answers:
    return Answers(
        [answers.prompts[place] for place in places],
        [answers.completions[place] for place in places],
        {name: [values[place] for place in places] for name, values in answers.columns.items()},
        [answers.trees[tree] for tree in trees],
    )


@dataclass(slots=True, eq=False)
class FirstRanksReward:
    """A Python function that runs beside the first rank alone, on the whole rollout; all get what it says."""

    name: str
    reward: Reward | None
    """None on the other ranks."""
    ranks: Ranks

    def __call__(self, answers: Answers) -> list[float]:
        found: list[float] = self.ranks.from_first(None if self.reward is None else self.reward(answers))
        return found

    def close(self) -> None:
        if self.reward is not None:
            self.reward.close()


def annotated(batches: Sequence[Batch], fill: Callable[[Batch], Batch], ranks: Ranks) -> list[Batch]:
    """Fill columns of all batches, each by the rank that has it in its hand."""
    if not ranks.several:
        return [fill(batch) for batch in batches]
    own: dict[str, Tensor] = {}
    for number in deal([batch.layout.size for batch in batches], ranks.world)[ranks.rank]:
        columns = fill(batches[number]).columns
        own |= {f"{number}.{name}": column for name, column in columns.items()}
    columns_of: list[dict[str, Tensor]] = [{} for _ in batches]
    for part in ranks.gathered(own):
        for key, column in part.items():
            place, _, name = key.partition(".")
            columns_of[int(place)][name] = column.to(batches[int(place)].tokens.device)
    return [batch.with_columns(**columns) for batch, columns in zip(batches, columns_of, strict=True)]
