"""The exact yardstick: what a policy is worth in the world of reviews, without sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from truing.build.load_result import Opened
from truing.core.errors import InputError, ModelError
from truing.models.enumeration import Place, Probabilities, answer_probabilities, answer_scores
from truing.models.language_model import LanguageModel
from truing.world.grammar import Node
from truing.world.optimum import Frontier, Levels, ProxyPoint, best_of_by
from truing.world.reviews import REVIEWS
from truing.world.reward import all_rewards
from truing.world.world import Prompt, World

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Exact:
    """What a policy is worth, each figure for every prompt: [P]."""

    reward: Doubles
    """Expected true reward; an answer outside of the language is worth 0."""
    kl: Doubles
    """KL divergence from the reference, in nats: over all answers, and over the places where the language is left."""
    entropy: Doubles
    """Of the same outcomes, in nats."""
    grammatical: Doubles
    """Probability of an answer of the language."""
    words: Doubles
    """Expected words and marks of such an answer."""
    unexplored: Doubles
    """Probability that was not looked at; 0 in an exact evaluation."""
    proxies: Mapping[str, Doubles]
    """What reward models expect of an answer of the language."""

    def means(self) -> dict[str, float]:
        """All figures, averaged over the prompts."""
        own = {name: getattr(self, name) for name in ("reward", "kl", "entropy", "grammatical", "words", "unexplored")}
        of_proxies = {f"proxy/{name}": values for name, values in self.proxies.items()}
        return {name: float(values.mean()) for name, values in {**own, **of_proxies}.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """Prompts whose answers have all been gone through, with what they are worth and how likely the reference is to
    give them.
    """

    prompts: tuple[str, ...]
    rewards: Doubles  # [P, A]
    answers: Doubles  # [P, A], log-probabilities of the reference
    departures: Doubles  # [P, N]
    proxies: Mapping[str, Doubles]  # [P, A] each

    @classmethod
    def of(cls, reference: Opened, count: int, world: World = REVIEWS) -> Yardstick:
        """Go through all answers of the reference to some held-out prompts."""
        prompts = balanced_prompts(world, count)
        texts = tuple(prompt.text for prompt in prompts)
        found = answer_probabilities(reference.model, *_asked(reference.loaded.tokenizer, texts, world))
        rewards = np.stack([all_rewards(prompt, world) for prompt in prompts])
        return cls(texts, rewards, found.answers, found.departures, {})

    def with_proxy(self, name: str, scorer: Opened, world: World = REVIEWS) -> Yardstick:
        """The same with what a reward model says of every answer."""
        return self.with_scores(
            name, answer_scores(scorer.model, *_asked(scorer.loaded.tokenizer, self.prompts, world))
        )

    def with_scores(self, name: str, scores: Doubles) -> Yardstick:
        """The same with scores of every answer that are known already: [P, A]."""
        return Yardstick(self.prompts, self.rewards, self.answers, self.departures, {**self.proxies, name: scores})

    @property
    def frontier(self) -> Frontier:
        """What is the best that any policy can reach."""
        return Frontier(self.levels)

    @property
    def levels(self) -> list[Levels]:
        """How probable each reward is under the reference, prompt by prompt."""
        return [Levels.of(rewards, logprobs) for rewards, logprobs in zip(self.rewards, self.answers, strict=True)]

    def measure(self, policy: Opened, world: World = REVIEWS, *, least: float = 0.0) -> Exact:
        """Go through all answers of a policy; with `least`, only behind prefixes at least as probable."""
        return self.measure_model(policy.model, policy.loaded.tokenizer, world, least=least)

    def measure_model(
        self,
        model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        world: World = REVIEWS,
        *,
        least: float = 0.0,
    ) -> Exact:
        """The same of a policy in memory, such as one in training."""
        return self._read(answer_probabilities(model, *_asked(tokenizer, self.prompts, world), least=least), world)

    def of_reference(self, world: World = REVIEWS) -> Exact:
        """The reference itself, from what is known already."""
        unexplored = np.zeros(len(self.prompts))
        return self._read(Probabilities(self.answers, self.departures, unexplored), world)

    def _read(self, found: Probabilities, world: World) -> Exact:
        masses, leaving = np.exp(found.answers), np.exp(found.departures)
        grammatical = masses.sum(axis=1)
        lengths = np.array(world.answer_lengths, dtype=np.float64)
        return Exact(
            reward=(masses * self.rewards).sum(axis=1),
            kl=_expected(masses, found.answers - self.answers) + _expected(leaving, found.departures - self.departures),
            entropy=-_expected(masses, found.answers) - _expected(leaving, found.departures),
            grammatical=grammatical,
            words=masses @ lengths / grammatical,
            unexplored=found.unexplored,
            proxies={name: (masses * scores).sum(axis=1) / grammatical for name, scores in self.proxies.items()},
        )

    def best_of(self, proxy: str, count: int) -> list[ProxyPoint]:
        """Best-of-n by a reward model, prompt by prompt."""
        columns = zip(self.proxies[proxy], self.rewards, self.answers, strict=True)
        return [best_of_by(scores, rewards, logprobs, count) for scores, rewards, logprobs in columns]

    def save(self, file: Path) -> None:
        """Keep it as an uncompressed .npz file."""
        columns: dict[str, Any] = {"rewards": self.rewards, "answers": self.answers, "departures": self.departures}
        columns |= {f"proxy/{name}": scores for name, scores in self.proxies.items()}
        np.savez(file, prompts=np.array(self.prompts), **columns)

    @classmethod
    def load(cls, file: Path) -> Yardstick:
        """Read one that was kept."""
        with np.load(file, allow_pickle=False) as kept:
            proxies = {name.removeprefix("proxy/"): kept[name] for name in kept.files if name.startswith("proxy/")}
            prompts = tuple(str(prompt) for prompt in kept["prompts"])
            return cls(prompts, kept["rewards"], kept["answers"], kept["departures"], proxies)


def balanced_prompts(world: World, count: int) -> list[Prompt]:
    """Held-out prompts that take places and verdicts in turn, so that few of them stand for all."""
    places, verdicts = world.places, world.verdicts
    period, pairs = math.lcm(len(places), len(verdicts)), len(places) * len(verdicts)
    found = []
    for number in range(count):
        # Where the two counts share a divisor, taking both in turn would come back to the same pairs; then shift.
        shift = number // period % (pairs // period)
        place, verdict = places[number % len(places)], verdicts[(number + shift) % len(verdicts)]
        fitting = [p for p in world.held_out if p.place == place and p.verdict == verdict]
        if number // pairs >= len(fitting):
            raise InputError(f"the world has too few held-out prompts for {count} different ones")
        found.append(fitting[number // pairs])
    return found


def language_of(world: World, prompt: str, tokenizer: PreTrainedTokenizerBase) -> Place:
    """The answers to a prompt in tokens; every word has to be one token."""
    known: dict[int, Place] = {}
    ids = tokenizer.get_vocab()

    def place(node: Node) -> Place:
        if id(node) not in known:
            known[id(node)] = Place({ids[word]: place(below) for word, below in node.branches.items()}, node.ends)
        return known[id(node)]

    try:
        return place(world.tree(prompt))
    except KeyError as missing:
        raise ModelError(f"the word {missing} of the world is no token of this model") from None


def _asked(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], world: World
) -> tuple[list[list[int]], Place, int]:
    ids = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    return ids, language_of(world, prompts[0], tokenizer), int(tokenizer.eos_token_id)


def _expected(masses: Doubles, values: Doubles) -> Doubles:
    """Σ mass · value over the last axis, where what has no mass counts for nothing."""
    found: Doubles = (masses * np.where(masses > 0, values, 0.0)).sum(axis=-1)
    return found
