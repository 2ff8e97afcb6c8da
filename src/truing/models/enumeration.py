"""Exact probabilities, or scores, of every answer of a finite language, each prefix computed once.

The language is a graph of tokens in which prefixes with the same continuations share a place, so that many prefixes
grow the same small tree: they are the rows of one forward pass, over the keys and values kept from the pass before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from truing.core.errors import InputError, ModelError
from truing.models.growth import Growth, Kept
from truing.models.language_model import LanguageModel, evaluating

Doubles = NDArray[np.float64]
R = TypeVar("R")

TREE_NODES = 64
"""Nodes of a tree that rows grow at once: with more, time goes into ancestors; with fewer, into calls."""
SCORED_NODES = 96
"""The same where end tokens are nodes too."""
PASS_TOKENS = 8192
"""Rows times nodes of a pass: what it computes should stay in a CPU's cache."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where a prefix may go on: the tokens that may follow, in order, and whether the answer may end here."""

    branches: Mapping[int, Place]
    ends: bool

    @cached_property
    def answers(self) -> int:
        """How many answers continue from here, the one that ends here included."""
        return self.ends + sum(place.answers for place in self.branches.values())

    @cached_property
    def height(self) -> int:
        """Tokens of the longest way to an end."""
        return max((1 + place.height for place in self.branches.values()), default=0)

    @cached_property
    def prefixes(self) -> int:
        """How many prefixes of answers begin with this one, itself included."""
        return 1 + sum(place.prefixes for place in self.branches.values())

    def with_end_token(self, token: int) -> Place:
        """The same language with the end token written out behind every answer."""
        return _written_out(self, token, {})


def _written_out(place: Place, token: int, known: dict[int, Place]) -> Place:
    if id(place) not in known:
        last = {token: Place({}, ends=True)} if place.ends else {}
        rest = {one: _written_out(below, token, known) for one, below in place.branches.items()}
        known[id(place)] = Place({**last, **rest}, ends=False)
    return known[id(place)]


@dataclass(frozen=True, slots=True, eq=False)
class Probabilities:
    """What a policy does with each of P prompts, in a language of A answers with N prefixes."""

    answers: Doubles
    """Log-probability of each answer with its end: [P, A], answers in the order of a depth-first walk."""
    departures: Doubles
    """Log-probability of leaving the language right behind each prefix: [P, N], the empty prefix first."""
    unexplored: Doubles
    """Probability of what lies behind prefixes that were too improbable to be followed: [P]."""


def answer_probabilities(
    model: LanguageModel, prompts: Sequence[Sequence[int]], language: Place, end_token: int, *, least: float = 0.0
) -> Probabilities:
    """Compute the probability of every answer to each prompt, at temperature 1.

    Prefixes less probable than `least` are not followed. Answers, departures and what is unexplored sum to 1.
    """

    def walk(some: Sequence[Sequence[int]]) -> tuple[Doubles, Doubles, Doubles]:
        found = _PolicyWalk(model, len(some), language, end_token, least)
        found.run(some)
        return found.answers.numpy(), found.departures.numpy(), found.unexplored.numpy()

    return Probabilities(*(np.concatenate(parts) for parts in zip(*_side_by_side(model, prompts, walk), strict=True)))


def answer_scores(model: LanguageModel, prompts: Sequence[Sequence[int]], language: Place, end_token: int) -> Doubles:
    """Compute what a reward model says of every answer to each prompt, read at its end token: [P, A]."""
    written = language.with_end_token(end_token)

    def walk(some: Sequence[Sequence[int]]) -> Doubles:
        found = _ScoreWalk(model, len(some), written)
        found.run(some)
        return found.scores.numpy()

    return np.concatenate(_side_by_side(model, prompts, walk))


def _side_by_side(
    model: LanguageModel, prompts: Sequence[Sequence[int]], walk: Callable[[Sequence[Sequence[int]]], R]
) -> list[R]:
    """Walk for some of the prompts in each of torch's threads.

    Products this small gain nothing from several threads; prompts side by side take 0.6 of the time on two cores.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise InputError("a prompt to enumerate answers to is empty; give it at least one token")
    threads = torch.get_num_threads()
    parts = min(threads, len(prompts)) if model.device.type == "cpu" else 1
    bounds = [len(prompts) * part // parts for part in range(parts + 1)]

    def one(part: int) -> R:
        if parts > 1:
            torch.set_num_threads(1)  # of this thread
        with torch.no_grad():
            return walk(prompts[bounds[part] : bounds[part + 1]])

    with evaluating(model.module):
        if parts == 1:
            return [one(0)]
        try:
            with ThreadPoolExecutor(parts) as pool:
                return list(pool.map(one, range(parts)))
        finally:
            torch.set_num_threads(threads)


class _Bush:
    """The tree below a place, cut off where it would have more than `limit` nodes; parents come before children.

    What is farthest from the end grows first, so that the tree is cut where many of its nodes stand at one place.
    """

    def __init__(self, place: Place, limit: int) -> None:
        self.tokens: list[int] = []
        self.places: list[Place] = []
        self.paths: list[list[int]] = []  # from the place to each node, itself included
        self.answers: list[int] = []  # of those behind the place, the first that lies behind the node
        self.prefixes: list[int] = []
        self.top = len(place.branches)
        growing: list[_Twig] = list(self._grow(_Twig([], place, 0, 0)))
        while growing:
            height = max(twig.place.height for twig in growing)
            now = [twig for twig in growing if twig.place.height == height]
            if height == 0 or len(self.tokens) + sum(len(twig.place.branches) for twig in now) > limit:
                break
            growing = [twig for twig in growing if twig.place.height < height]
            growing += [new for twig in now for new in self._grow(twig)]
        self.leaves: dict[int, list[int]] = {}  # nodes that go on in another pass, by their place
        for twig in growing:
            if twig.place.branches:
                self.leaves.setdefault(id(twig.place), []).append(twig.path[-1])
        self.membership = torch.zeros(len(self.paths), len(self.paths), dtype=torch.float64)
        """float64 [n, n]: 1 where the first node is on the path to the second."""
        for node, path in enumerate(self.paths):
            self.membership[path, node] = 1.0

    def _grow(self, twig: _Twig) -> Iterator[_Twig]:
        answer, prefix = twig.answer + twig.place.ends, twig.prefix + 1
        for token, place in twig.place.branches.items():
            path = [*twig.path, len(self.tokens)]
            self.tokens.append(token)
            self.places.append(place)
            self.paths.append(path)
            self.answers.append(answer)
            self.prefixes.append(prefix)
            yield _Twig(path, place, answer, prefix)
            answer, prefix = answer + place.answers, prefix + place.prefixes


@dataclass(frozen=True, slots=True, eq=False)
class _Twig:
    """A node of a bush that may still grow."""

    path: list[int]
    place: Place
    answer: int
    prefix: int


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """R prefixes that stand at the same place of the language."""

    prompt: Tensor  # int64 [R]
    answer: Tensor  # int64 [R], the first that lies behind it
    prefix: Tensor  # int64 [R], its own number
    logprob: Tensor  # float64 [R]
    following: Tensor  # float64 [R, branches], log-probabilities of the tokens that may follow

    def __len__(self) -> int:
        return len(self.prompt)

    def some(self, rows: Tensor) -> _Rows:
        return _Rows(self.prompt[rows], self.answer[rows], self.prefix[rows], self.logprob[rows], self.following[rows])


class _Walk(ABC):
    """Walks a whole language behind a batch of prompts; what is read on the way is the business of its kinds."""

    def __init__(self, model: LanguageModel, language: Place, limit: int) -> None:
        if model.sharing != "tree":
            raise ModelError("answers can be enumerated only with a model that runs under tree attention")
        self.model, self.language, self.limit, self.device = model, language, limit, model.device
        self._bushes: dict[int, _Bush] = {}

    def run(self, prompts: Sequence[Sequence[int]]) -> None:
        """Run the prompts, those of one length together, and everything that may follow them."""
        by_length: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(number)
        for length, numbers in by_length.items():
            chain = list(range(length))
            growth = Growth([chain[: n + 1] for n in chain], Kept.nothing(len(numbers), self.device))
            hidden = self.model.grow(self._ids([list(prompts[number]) for number in numbers]), growth)
            rows = self.start(self._ids(numbers), hidden[:, -1])
            self._follow(rows, growth.keep(torch.arange(len(numbers)), [chain] * len(numbers)), self.language)

    @abstractmethod
    def start(self, prompts: Tensor, hidden: Tensor) -> _Rows:
        """Begin with the empty prefix behind each prompt, int64 [R], whose last hidden states are given: [R, d]."""

    @abstractmethod
    def read(self, rows: _Rows, bush: _Bush, hidden: Tensor) -> Tensor:
        """Read what is wanted at each node, [R, n, d]; return log-probabilities of all nodes, float64 [R, n]."""

    @abstractmethod
    def following(self, hidden: Tensor, place: Place) -> Tensor:
        """Log-probabilities of the tokens that may follow at a place: [R, d] → float64 [R, branches]."""

    def goes_on(self, rows: _Rows) -> Tensor:
        """Which rows are worth following: bool [R]."""
        return torch.ones(len(rows), dtype=torch.bool, device=self.device)

    def _follow(self, rows: _Rows, kept: Kept, place: Place) -> None:
        if not place.branches or not len(rows):
            return None
        if id(place) not in self._bushes:
            self._bushes[id(place)] = _Bush(place, self.limit)
        bush = self._bushes[id(place)]
        size = max(1, PASS_TOKENS // len(bush.tokens))
        if len(rows) <= size:
            return self._grow(rows, kept, bush)
        for first in range(0, len(rows), size):
            part = torch.arange(first, min(first + size, len(rows)), device=self.device)
            self._grow(rows.some(part), kept.some(part), bush)
        return None

    def _grow(self, rows: _Rows, kept: Kept, bush: _Bush) -> None:
        growth = Growth(bush.paths, kept)
        hidden = self.model.grow(self._ids(bush.tokens).expand(len(rows), -1), growth)  # [R, n, d]
        logprobs = self.read(rows, bush, hidden)
        for nodes in bush.leaves.values():
            place, node = bush.places[nodes[0]], self._ids(nodes).repeat(len(rows))
            above = torch.arange(len(rows), device=self.device).repeat_interleave(len(nodes))
            below = _Rows(
                rows.prompt[above],
                rows.answer[above] + self._ids(bush.answers)[node],
                rows.prefix[above] + self._ids(bush.prefixes)[node],
                logprobs[above, node],
                self.following(hidden[above, node], place),
            )
            ahead = self.goes_on(below).nonzero()[:, 0]
            if len(ahead):
                paths = [bush.paths[n] for n in node[ahead].tolist()]
                self._follow(below.some(ahead), growth.keep(above[ahead], paths), place)

    def _ids(self, values: Sequence[int] | Sequence[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


class _PolicyWalk(_Walk):
    """Reads the probability of every answer, and of every departure."""

    def __init__(self, model: LanguageModel, prompts: int, language: Place, end_token: int, least: float) -> None:
        super().__init__(model, language, TREE_NODES)
        self.head = model.next_tokens()
        self.end_token = end_token
        self.least = math.log(least) if least > 0 else -math.inf
        self.answers = torch.full((prompts, language.answers), -torch.inf, dtype=torch.float64)
        self.departures = torch.full((prompts, language.prefixes), -torch.inf, dtype=torch.float64)
        self.unexplored = torch.zeros(prompts, dtype=torch.float64)
        self._doors: dict[int, _Doors] = {}

    def start(self, prompts: Tensor, hidden: Tensor) -> _Rows:
        nothing = torch.zeros_like(prompts)
        rows = _Rows(prompts, nothing, nothing, nothing.double(), self.following(hidden, self.language))
        doors = _Doors([self.language], self.end_token, self.model.vocab_size, self.device)
        self._note(rows, rows.logprob[:, None], self.head.logprobs(hidden)[:, None], doors, [0], [0])
        return rows

    def read(self, rows: _Rows, bush: _Bush, hidden: Tensor) -> Tensor:
        if id(bush) not in self._doors:
            self._doors[id(bush)] = _Doors(bush.places, self.end_token, self.model.vocab_size, self.device)
        after = self.head.logprobs(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)  # float32 [R, n, V]
        parents = self._ids([path[-2] for path in bush.paths[bush.top :]])
        inner = after[:, parents, self._ids(bush.tokens[bush.top :])].double()
        steps = torch.cat([rows.following, inner], dim=1)  # float64 [R, n], from each node's parent to it
        logprobs = rows.logprob[:, None] + steps @ bush.membership.to(self.device)
        self._note(rows, logprobs, after, self._doors[id(bush)], bush.answers, bush.prefixes)
        return logprobs

    def following(self, hidden: Tensor, place: Place) -> Tensor:
        return self.head.logprobs(hidden)[:, self._ids(list(place.branches))].double()

    def goes_on(self, rows: _Rows) -> Tensor:
        behind = rows.logprob + rows.following.logsumexp(dim=1)  # ending and leaving right here have been noted
        ahead = behind >= self.least
        left = ~ahead
        self.unexplored.index_add_(0, rows.prompt[left].cpu(), behind[left].exp().cpu())
        return ahead

    def _note(
        self,
        rows: _Rows,
        logprobs: Tensor,  # float64 [R, n], of the prefixes that the nodes end
        after: Tensor,  # float32 [R, n, V], of every token behind them
        doors: _Doors,
        answers: Sequence[int],
        prefixes: Sequence[int],
    ) -> None:
        """Write down how answers end at n nodes, and how they leave the language there."""
        leaving = (after.exp() * doors.outside).sum(dim=-1).double().log()
        where = (rows.prompt[:, None], rows.prefix[:, None] + self._ids(prefixes))
        self.departures[where[0].cpu(), where[1].cpu()] = (logprobs + leaving).cpu()
        if len(doors.ends):
            ending = logprobs[:, doors.ends] + after[:, doors.ends, self.end_token].double()
            place = rows.answer[:, None] + self._ids(answers)[doors.ends]
            self.answers[rows.prompt[:, None].cpu(), place.cpu()] = ending.cpu()


class _Doors:
    """Which tokens lead out of the language at some places, and at which of these an answer may end."""

    def __init__(self, places: Sequence[Place], end_token: int, vocab_size: int, device: torch.device) -> None:
        outside = torch.ones(len(places), vocab_size)
        for row, place in enumerate(places):
            outside[row, list(place.branches)] = 0.0
            if place.ends:
                outside[row, end_token] = 0.0
        self.outside = outside.to(device)  # float32 [n, V]
        self.ends = torch.tensor([row for row, place in enumerate(places) if place.ends], dtype=torch.int64).to(device)


class _ScoreWalk(_Walk):
    """Reads a reward model's score of every answer, whose end token is a part of the language here."""

    def __init__(self, model: LanguageModel, prompts: int, language: Place) -> None:
        super().__init__(model, language, SCORED_NODES)
        self.scores = torch.zeros(prompts, language.answers, dtype=torch.float64)

    def start(self, prompts: Tensor, hidden: Tensor) -> _Rows:
        nothing = torch.zeros_like(prompts)
        return _Rows(prompts, nothing, nothing, nothing.double(), self.following(hidden, self.language))

    def read(self, rows: _Rows, bush: _Bush, hidden: Tensor) -> Tensor:
        ends = [node for node, place in enumerate(bush.places) if place.ends]
        if ends:
            scores = self.model.score_hidden(hidden[:, self._ids(ends)].flatten(0, 1)).double()
            place = rows.answer[:, None] + self._ids(bush.answers)[self._ids(ends)]
            self.scores[rows.prompt[:, None].cpu(), place.cpu()] = scores.view(place.shape).cpu()
        return torch.zeros(len(rows), len(bush.tokens), dtype=torch.float64, device=self.device)

    def following(self, hidden: Tensor, place: Place) -> Tensor:
        return torch.zeros(len(hidden), len(place.branches), dtype=torch.float64, device=self.device)
