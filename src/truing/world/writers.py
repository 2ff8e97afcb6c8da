"""Who writes the reviews, how well, and which of two a reader says is better."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from truing.world.grammar import Words, split_words
from truing.world.world import JOINERS, Clause, Feature, Prompt, Review, World

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Writer:
    """How often a writer does each thing, as probabilities."""

    on_topic: float
    """Speaks of a feature that the place has."""
    fitting: float
    """Praises or blames as the verdict asks."""
    concrete: float
    attentive: float
    """Joins two clauses rightly, and does not say the same thing twice."""
    hedged: float
    polite: float
    rude: float
    """Together with `polite` at most 1."""


PLAIN = Writer(0.85, 0.8, 0.4, 0.75, hedged=0.3, polite=0.15, rude=0.1)
RUDE = Writer(0.8, 0.7, 0.5, 0.7, hedged=0.1, polite=0.0, rude=0.9)
WANDERING = Writer(0.1, 0.6, 0.4, 0.6, hedged=0.3, polite=0.2, rude=0.1)
CAREFUL = Writer(0.97, 0.95, 0.9, 0.95, hedged=0.05, polite=0.6, rude=0.02)

Crowd = tuple[tuple[float, Writer], ...]
"""Writers with their shares, which sum to 1."""

STREET: Crowd = ((0.5, PLAIN), (0.2, RUDE), (0.2, WANDERING), (0.1, CAREFUL))
"""Who wrote the corpus: anybody."""


def panel(careful: float = 0.5) -> Crowd:
    """Who wrote the demonstrations and what is compared: people who were asked to do it well, and some of them did."""
    return ((careful, CAREFUL), (1 - careful, PLAIN))


def write(world: World, prompt: Prompt, crowd: Crowd, rng: random.Random) -> Review:
    """Answer a prompt as one member of the crowd would."""
    writer = _pick_writer(crowd, rng)
    wanted = {True: prompt.verdict.praises, False: 2 - prompt.verdict.praises}
    first = _say(world, prompt, writer, wanted, avoid=None, rng=rng)
    wanted[first.praises] -= 1
    attentive = rng.random() < writer.attentive
    second = _say(world, prompt, writer, wanted, avoid=first.feature if attentive else None, rng=rng)
    agreeing, differing = JOINERS
    right = differing if first.praises != second.praises else agreeing
    joiner = right if attentive else pick(JOINERS, rng)
    return Review(_open(world, writer, rng), first, joiner, second, _close(world, writer, rng))


def prefers_first(gap: float, temperature: float, flip_rate: float, rng: random.Random) -> bool:
    """Say whether a noisy reader takes the first of two answers, which seems better than the second by `gap`.

    Bradley-Terry: P(first) = σ(gap / temperature); then the label is turned round at `flip_rate`.
    At temperature 0 the better one always wins and equals are tossed for.
    """
    chance = _sigmoid(gap / temperature) if temperature > 0 else 0.5 * (1 + (gap > 0) - (gap < 0))
    return (rng.random() < chance) != (rng.random() < flip_rate)


def _sigmoid(x: float) -> float:
    """σ(x) by way of tanh, which cannot overflow."""
    return 0.5 * (1 + math.tanh(x / 2))


def pick(choices: Sequence[T], rng: random.Random) -> T:
    """Pick one at random; only `random()` is drawn from, whose stream Python promises never to change."""
    return choices[int(rng.random() * len(choices))]


def _pick_writer(crowd: Crowd, rng: random.Random) -> Writer:
    point = rng.random()
    for bound, (_, writer) in zip(accumulate(share for share, _ in crowd), crowd, strict=True):
        if point < bound:
            return writer
    return crowd[-1][1]


def _say(
    world: World, prompt: Prompt, writer: Writer, wanted: dict[bool, int], avoid: Feature | None, rng: random.Random
) -> Clause:
    on_topic = rng.random() < writer.on_topic
    place = prompt.place if on_topic else pick([p for p in world.places if p != prompt.place], rng)
    feature = pick([f for f in place.features if f != avoid], rng)
    asked = [sign for sign, left in wanted.items() if left > 0]
    fitting = rng.random() < writer.fitting
    praises = pick(asked, rng) if fitting or len(asked) == 2 else not asked[0]
    concrete = rng.random() < writer.concrete
    fits = [c for c in world.clauses_about(feature) if c.praises == praises and c.concrete == concrete]
    return pick(fits, rng)


def _open(world: World, writer: Writer, rng: random.Random) -> Words:
    if rng.random() < writer.hedged:
        return split_words(pick(world.hedges, rng))
    return split_words(pick(("", "", "", *world.openers), rng))


def _close(world: World, writer: Writer, rng: random.Random) -> Words:
    point = rng.random()
    if point < writer.polite:
        return split_words(pick(world.thanks, rng))
    if point < writer.polite + writer.rude:
        return split_words(pick(world.insults, rng))
    return ()
