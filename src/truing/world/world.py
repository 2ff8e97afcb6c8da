"""A world of short reviews: prompts that ask for one, and a finite grammar that holds every possible answer.

A prompt names a verdict and a place ("Three stars for the corner bakery:"); an answer says two things about it
("The bread was crisp, but the coffee was weak. Thanks!"). Any answer may follow any prompt; how good it is there is
the business of `truing.world.reward`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from truing.core.errors import InputError
from truing.world.grammar import END, Node, Words, grow, join_words, split_words

JOINERS: tuple[Words, ...] = (("and",), (",", "but"))
"""How two clauses are joined; the second says that they differ."""

CLAUSE_WORDS = 3
"""Noun, verb, adjective; the article before them depends on what comes before it."""

HELD_OUT_EVERY = 4
"""One setting in four is kept from training, another one for each place."""


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that a place has, with the concrete words that praise and blame it."""

    subject: str
    """Noun and verb, such as "bread was"."""
    praise: tuple[str, ...]
    blame: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of place and what can be said about it."""

    name: str
    features: tuple[Feature, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a prompt wants its place judged: how many of two clauses should praise, the others blame."""

    stars: str
    praises: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request for one review."""

    verdict: Verdict
    setting: str
    place: Place

    @property
    def text(self) -> str:
        return f"{self.verdict.stars} for the {self.setting} {self.place.name}:"


@dataclass(frozen=True, slots=True)
class Clause:
    """One thing said about one feature."""

    feature: Feature
    adjective: str
    praises: bool
    concrete: bool

    @property
    def words(self) -> Words:
        """The clause without its article: noun, verb, adjective."""
        return (*split_words(self.feature.subject), self.adjective)


@dataclass(frozen=True, slots=True)
class Review:
    """An answer, taken apart; `opening` and `closing` may be empty."""

    opening: Words
    first: Clause
    joiner: Words
    second: Clause
    closing: Words

    @property
    def words(self) -> Words:
        article = "the" if self.opening else "The"
        body = (article, *self.first.words, *self.joiner, "the", *self.second.words, ".")
        return (*self.opening, *body, *self.closing)

    @property
    def text(self) -> str:
        return join_words(self.words)


@dataclass(frozen=True)
class World:
    """The words that prompts and answers are made of."""

    verdicts: tuple[Verdict, ...]
    settings: tuple[str, ...]
    places: tuple[Place, ...]
    vague: tuple[str, str]
    """The words that praise and blame anything."""
    hedges: tuple[str, ...]
    """Openings that take back what follows."""
    openers: tuple[str, ...]
    """Openings that change nothing."""
    thanks: tuple[str, ...]
    """Polite closings."""
    insults: tuple[str, ...]
    """Rude closings."""

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts."""
        return tuple(Prompt(v, s, p) for p in self.places for s in self.settings for v in self.verdicts)

    @cached_property
    def held_out(self) -> tuple[Prompt, ...]:
        """The prompts kept from training: their place is never met in that setting, though both words are known."""
        return tuple(p for p in self.prompts if self._is_held_out(p))

    @cached_property
    def training(self) -> tuple[Prompt, ...]:
        """The prompts that training data may use."""
        return tuple(p for p in self.prompts if not self._is_held_out(p))

    def _is_held_out(self, prompt: Prompt) -> bool:
        return (self.settings.index(prompt.setting) - self.places.index(prompt.place)) % HELD_OUT_EVERY == 0

    def prompt(self, text: str) -> Prompt:
        """Return the prompt that reads `text`, white space aside."""
        words = split_words(text)
        if words not in self._prompts_by_words:
            example = self.prompts[0].text
            raise InputError(f"{text!r} is not a prompt of this world; they read like {example!r}")
        return self._prompts_by_words[words]

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word and mark of prompts and answers, sorted."""
        words = {word for prompt in self.prompts for word in split_words(prompt.text)}
        return tuple(sorted(words | _words_below(self._tree)))

    @cached_property
    def clauses(self) -> tuple[Clause, ...]:
        """Everything that can be said about anything."""
        return tuple(c for place in self.places for feature in place.features for c in self.clauses_about(feature))

    def clauses_about(self, feature: Feature) -> tuple[Clause, ...]:
        """Everything that can be said about one feature."""
        good, bad = self.vague
        return (
            *(Clause(feature, word, praises=True, concrete=True) for word in feature.praise),
            *(Clause(feature, word, praises=False, concrete=True) for word in feature.blame),
            Clause(feature, good, praises=True, concrete=False),
            Clause(feature, bad, praises=False, concrete=False),
        )

    @cached_property
    def openings(self) -> tuple[Words, ...]:
        """All openings but the empty one."""
        return tuple(split_words(text) for text in (*self.hedges, *self.openers))

    @cached_property
    def closings(self) -> tuple[Words, ...]:
        """All closings but the empty one."""
        return tuple(split_words(text) for text in (*self.thanks, *self.insults))

    def tree(self, prompt: str) -> Node:
        """Return the tree of all answers to a prompt; here it is the same one for every prompt."""
        self.prompt(prompt)
        return self._tree

    def answers(self, prompt: str) -> Iterator[str]:
        """Walk the text of all answers to a prompt."""
        return (join_words(words) for words in self.tree(prompt).answers())

    def count_answers(self, prompt: str) -> int:
        """How many answers a prompt has."""
        return self.tree(prompt).count

    @cached_property
    def answer_lengths(self) -> tuple[int, ...]:
        """Words and marks of all answers, in their order."""
        return tuple(_lengths(self._tree, {}))

    def is_grammatical(self, prompt: str, answer: str) -> bool:
        """Whether `answer` is a whole answer of the grammar; one that was cut off is not."""
        node = self.tree(prompt).after(split_words(answer))
        return node is not None and node.ends

    def read(self, prompt: str, answer: str) -> Review | None:
        """Take an answer apart, or return None where it is not grammatical."""
        if not self.is_grammatical(prompt, answer):
            return None
        words = split_words(answer)
        stop = words.index(".")
        start = 1 + next(i for i, word in enumerate(words) if word in ("The", "the"))
        return Review(
            opening=words[: start - 1],
            first=self._clauses_by_words[words[start : start + CLAUSE_WORDS]],
            joiner=words[start + CLAUSE_WORDS : stop - CLAUSE_WORDS - 1],
            second=self._clauses_by_words[words[stop - CLAUSE_WORDS : stop]],
            closing=words[stop + 1 :],
        )

    @cached_property
    def _prompts_by_words(self) -> dict[Words, Prompt]:
        return {split_words(prompt.text): prompt for prompt in self.prompts}

    @cached_property
    def _clauses_by_words(self) -> dict[Words, Clause]:
        return {clause.words: clause for clause in self.clauses}

    @cached_property
    def _tree(self) -> Node:
        """Built from the last word to the first, so that all prefixes share what follows them."""
        ending = grow([(words, END) for words in self.closings], ends=True)
        stop = grow([((".",), ending)])
        second = grow([(("the", *clause.words), stop) for clause in self.clauses])
        joiner = grow([(words, second) for words in JOINERS])
        first = grow([(clause.words, joiner) for clause in self.clauses])
        lower = grow([(("the",), first)])
        return grow([(("The",), first), *((words, lower) for words in self.openings)])


def _lengths(node: Node, known: dict[int, list[int]]) -> list[int]:
    """Lengths of what continues from a node, each shared node worked out once."""
    if id(node) not in known:
        below = [1 + length for child in node.branches.values() for length in _lengths(child, known)]
        known[id(node)] = [0, *below] if node.ends else below
    return known[id(node)]


def _words_below(root: Node) -> set[str]:
    words: set[str] = set()
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            words |= set(node.branches)
            waiting += node.branches.values()
    return words
