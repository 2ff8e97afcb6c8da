"""A trainer's steps from the policy's own completions: prompts → samples → scores → columns → steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing.core.batch import Batch, Totals
from truing.core.errors import NothingToTrain
from truing.core.samples import Sampled
from truing.core.trees import Completion, IntArray, Tree
from truing.data.packing import StepPlan
from truing.objectives.policy_gradient import RolloutObjective, equal_groups
from truing.rl.engine import Engine
from truing.rl.rewards import Answers, Reward, Turns
from truing.training.dealing import ALL_OF_IT, Dealer, deal_packed
from truing.training.progress import Reporter
from truing.training.rollout_state import Rollout, as_tensors, from_tensors
from truing.training.shared_rollouts import annotated
from truing.training.source import Annotate, PreparedStep

SILENT_ROLLOUTS = 10
"""Rollouts in a row that teach nothing after which a run stops."""


@dataclass(frozen=True, slots=True, eq=False)
class Asking:
    """A prompt as tokens and as rewards see it."""

    tokens: IntArray  # int32 [p]
    words: str | Turns
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """A reward and what it counts."""

    reward: Reward
    weight: float
    normalize: bool


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How rollouts are made and used."""

    examples: int
    """Prompts of an optimizer step."""
    mini_batches: int
    epochs: int
    group_size: int
    max_new_tokens: int
    normalize_on: int
    micro_tokens: int
    seed: int
    shuffle: bool

    @property
    def prompts(self) -> int:
        """Prompts of a rollout."""
        return self.examples * self.mini_batches


@dataclass(frozen=True, slots=True, eq=False)
class Crew:
    """Everyone who has a part in a rollout."""

    engine: Engine
    temperature: float
    rewards: Sequence[Weighed]
    annotate: Annotate
    """Fills `ref_logprobs`, and `values` where there is a critic."""
    logprobs: Callable[[Batch], Tensor]
    """The policy's log-probs now, float32 [K], where the engine could not give those of its samples."""
    collate: Callable[[Sequence[Tree]], Batch]
    size: Callable[[Tree], int]
    """Tokens that a tree takes in a batch."""
    decode: Callable[[IntArray], str]
    dealer: Dealer = ALL_OF_IT
    whole: Callable[[], AbstractContextManager[None]] = nullcontext
    """Has all weights on this rank meanwhile; a rollout is made in it."""


@dataclass(eq=False)
class RolloutSource:
    """Steps of a run that learns from what it writes. Each rollout depends on the seed, its number and the policy."""

    objective: RolloutObjective
    askings: Sequence[Asking]
    held_out: Sequence[Asking]
    plan: RolloutPlan
    crew: Crew
    total_steps: int
    reporter: Reporter
    _number: int = 0
    """Rollouts begun."""
    _current: Rollout | None = None
    _memory: dict[str, float] = field(default_factory=dict)
    _norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    _silent: int = 0

    def steps(self, start: int) -> Iterator[PreparedStep]:
        """Yield the steps from number `start` on; a later start needs the state that was saved there."""
        step = start
        while step < self.total_steps:
            if self._current is None:
                with self.crew.whole():
                    self._current = self._next()
            rollout = self._current
            complaint = self.objective.over_budget(rollout.metrics) if rollout.done == 0 else None
            if complaint is not None:
                self.reporter.warn(f"training ends after step {step}: {complaint}")
                return
            minis = len(rollout.batches)
            epoch, place = divmod(rollout.done, minis)
            order = np.random.default_rng((self.plan.seed, self._number, epoch)).permutation(minis)
            batches = rollout.batches[order[place]]
            rollout.done += 1
            if rollout.done == minis * self.plan.epochs:
                self._current = None
            sizes = [batch.layout.size for batch in batches]
            hand = self.crew.dealer.hand_of_bins(sizes)
            own, fillers = (tuple(batches[i] for micro in part for i in micro) for part in (hand.bins, hand.fillers))
            yield PreparedStep(
                step,
                own,
                Totals.of(batches),
                self._number * self.plan.prompts,
                sum(sizes),
                fillers,
                rollout.metrics,
                rollout.silent,
            )
            step += 1

    def evaluate(self) -> dict[str, float]:
        """Score one completion of each held-out prompt, with the same random numbers every time."""
        if not self.held_out:
            return {}
        with self.crew.whole():
            groups = self._write(self.held_out, 1, (self.plan.seed, 1 << 32))
            found, each = self._score(self.held_out, groups)
        scores = np.array(found)
        half = 1.96 * scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else 0.0
        return {
            "eval_scores": float(scores.mean()),
            "eval_scores/half_width": float(half),
            **{f"eval_{name}": value for name, value in each.items()},
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resumed run needs: tensors and plain values."""
        values: dict[str, Any] = {
            "number": self._number,
            "memory": self._memory,
            "norms": {name: list(norm) for name, norm in self._norms.items()},
            "silent": self._silent,
        }
        rollout = self._current
        if rollout is None:
            return {}, values
        tensors, shape = as_tensors(rollout)
        values["rollout"] = {
            "shape": shape,
            "done": rollout.done,
            "metrics": rollout.metrics,
            "silent": rollout.silent,
        }
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self._number, self._silent = values["number"], values["silent"]
        self._memory = dict(values["memory"])
        self._norms = {name: (norm[0], norm[1]) for name, norm in values["norms"].items()}
        saved = values.get("rollout")
        self._current = None if saved is None else from_tensors(tensors, saved, self.crew.collate)

    def close(self) -> None:
        """End the processes of rewards, and let the engine go."""
        self.crew.engine.close()
        for weighed in self.crew.rewards:
            weighed.reward.close()

    def _next(self) -> Rollout:
        """Make rollouts until one has something to learn from."""
        if not self._norms and any(weighed.normalize for weighed in self.crew.rewards):
            self._normalise()
        while True:
            rollout = self._make()
            self._number += 1
            if rollout.silent:
                self._silent += 1
                self._say_silent()
            else:
                self._silent = 0
            if rollout.batches:
                return rollout

    def _make(self) -> Rollout:
        rows = self._rows()
        askings = [self.askings[row] for row in rows]
        groups = self._write(askings, self.plan.group_size, (self.plan.seed, self._number))
        scores, metrics = self._score(askings, groups)
        metrics |= self.crew.engine.figures()
        picked = self._trees(askings, groups, scores)
        minis = [
            [part for one in picked[start : start + self.plan.examples] if one is not None for part in self._cut(one)]
            for start in range(0, len(picked), self.plan.examples)
        ]
        packed = [
            [[trees[i] for i in micro] for micro in self._pack([tree.tree for tree in trees])]
            for trees in minis
            if trees
        ]
        if not packed:
            return Rollout([], [], metrics, silent=True)
        bare = [self._batch(micro) for mini in packed for micro in mini]
        flat = annotated(bare, self._annotate, self.crew.dealer.ranks)
        prepared = self.objective.prepare(flat, self._memory)
        self._memory = dict(prepared.memory)
        whole = iter([batch.with_columns(**own) for batch, own in zip(flat, prepared.columns, strict=True)])
        filled = [[next(whole) for _ in mini] for mini in packed]
        trees = [[[one.tree for one in micro] for micro in mini] for mini in packed]
        return Rollout(trees, filled, {**metrics, **prepared.metrics}, prepared.silent)

    def _rows(self) -> list[int]:
        """The prompts of this rollout: pass after pass over all of them, each in a new order."""
        order = StepPlan(
            sizes=(1,) * len(self.askings),
            examples=self.plan.prompts,
            tokens=None,
            micro_tokens=1,
            seed=self.plan.seed,
            shuffle=self.plan.shuffle,
            max_steps=self._number + 1,
            epochs=1.0,
        )
        step = next(order.steps(self._number))
        return sorted(row for micro in step.micro_batches for row in micro)

    def _write(self, askings: Sequence[Asking], count: int, key: tuple[int, int]) -> list[list[Sampled]]:
        return self.crew.engine.sample(
            [asking.tokens.tolist() for asking in askings],
            count=count,
            max_new_tokens=self.plan.max_new_tokens,
            temperature=self.crew.temperature,
            seed=int(np.random.SeedSequence(key).generate_state(1)[0]),
        )

    def _score(
        self, askings: Sequence[Asking], groups: Sequence[Sequence[Sampled]]
    ) -> tuple[list[float], dict[str, float]]:
        """The weighted sum of all rewards, a number a completion, and figures."""
        found = self._raw(askings, groups)
        total = np.zeros(sum(len(group) for group in groups))
        metrics: dict[str, float] = {}
        for weighed, raw in zip(self.crew.rewards, found, strict=True):
            mean, deviation = self._norms.get(weighed.reward.name, (0.0, 1.0)) if weighed.normalize else (0.0, 1.0)
            total += weighed.weight * (raw - mean) / deviation
            metrics[f"rewards/{weighed.reward.name}"] = float(raw.mean())
        rows = [row for group in groups for row in group]
        metrics |= {
            "objective/scores": float(total.mean()),
            "completions/length": float(np.mean([len(row.tokens) for row in rows])),
            "completions/ended": float(np.mean([row.ended for row in rows])),
        }
        paid = correlation(total, np.array([len(row.tokens) for row in rows], dtype=np.float64))
        if paid is not None:
            metrics["rewards/length_correlation"] = paid
        if self.plan.group_size > 1 and len(groups) * self.plan.group_size == len(total):
            numbers = torch.arange(len(groups)).repeat_interleave(self.plan.group_size)
            metrics["rewards/equal_groups"] = equal_groups(torch.from_numpy(total), numbers)
        return total.tolist(), metrics

    def _raw(self, askings: Sequence[Asking], groups: Sequence[Sequence[Sampled]]) -> list[np.ndarray]:
        """What each reward says: float64 [C] each."""
        names = sorted({name for asking in self.askings for name in asking.columns})
        each = [(asking, row) for asking, group in zip(askings, groups, strict=True) for row in group]
        answers = Answers(
            [asking.words for asking, _ in each],
            [self.crew.decode(row.tokens) for _, row in each],
            {name: [asking.columns.get(name) for asking, _ in each] for name in names},
            [_tree(asking, group) for asking, group in zip(askings, groups, strict=True)],
        )
        return [np.asarray(weighed.reward(answers), dtype=np.float64) for weighed in self.crew.rewards]

    def _normalise(self) -> None:
        """Measure the rewards on samples of the policy as it begins, which is the reference."""
        count = max(1, -(-self.plan.normalize_on // len(self.askings)))
        askings = self.askings[: -(-self.plan.normalize_on // count)]
        groups = self._write(askings, count, (self.plan.seed, 1 << 33))
        for weighed, raw in zip(self.crew.rewards, self._raw(askings, groups), strict=True):
            if weighed.normalize:
                spread = float(raw.std())
                self._norms[weighed.reward.name] = (float(raw.mean()), spread if spread > 1e-8 else 1.0)

    def _trees(
        self, askings: Sequence[Asking], groups: Sequence[Sequence[Sampled]], scores: Sequence[float]
    ) -> list[_Scored | None]:
        """The completions to learn from, a tree a prompt; None where there are none."""
        found: list[_Scored | None] = []
        first = 0
        for number, (asking, group) in enumerate(zip(askings, groups, strict=True)):
            own = scores[first : first + len(group)]
            first += len(group)
            ended = torch.tensor([row.ended for row in group])
            picked = self.objective.pick(self.objective.shaped(torch.tensor(own, dtype=torch.float64), ended).tolist())
            kept = [group[index] for index in picked.keep]
            tree = _tree(asking, kept, picked.pairs)
            found.append(_Scored(tree, kept, [own[i] for i in picked.keep], number) if kept else None)
        return found

    def _cut(self, scored: _Scored) -> list[_Scored]:
        """Give a prompt whose completions do not fit a micro-batch several trees; comparisons stay together."""
        if scored.tree.pairs or self.crew.size(scored.tree) <= self.plan.micro_tokens:
            return [scored]
        half = len(scored.rows) // 2
        if half == 0:
            return [scored]
        return [part for side in (slice(half), slice(half, None)) for part in self._cut(scored.part(side))]

    def _pack(self, trees: Sequence[Tree]) -> list[list[int]]:
        sizes, world = [self.crew.size(tree) for tree in trees], self.crew.dealer.ranks.world
        hands = deal_packed(sizes, self.plan.micro_tokens, world)
        return [micro for bins in hands for micro in bins]

    def _batch(self, scored: Sequence[_Scored]) -> Batch:
        batch = self.crew.collate([one.tree for one in scored])
        rows = [row for one in scored for row in one.rows]
        device = batch.tokens.device

        def column(values: Any, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(values, dtype=dtype).to(device)

        return batch.with_columns(
            old_logprobs=column(np.concatenate([row.logprobs for row in rows]), torch.float32),
            scores=column([score for one in scored for score in one.scores], torch.float32),
            ended=column([row.ended for row in rows], torch.bool),
            groups=column([one.group for one in scored for _ in one.rows], torch.int64),
        )

    def _annotate(self, batch: Batch) -> Batch:
        """Fill the columns that a model has to be asked for."""
        if not bool(batch.column("old_logprobs").isfinite().all()):
            batch = batch.with_columns(old_logprobs=self.crew.logprobs(batch))
        return self.crew.annotate(batch)

    def _say_silent(self) -> None:
        if self._silent == 1:
            self.reporter.warn(
                f"rollout {self._number}: every completion scored the same, so there is nothing to learn from it"
            )
        if self._silent >= SILENT_ROLLOUTS:
            raise NothingToTrain(
                f"{SILENT_ROLLOUTS} rollouts in a row taught nothing: in each, all completions of a prompt scored the "
                "same. Give a reward that tells them apart, a higher rollout.temperature, or a larger group_size"
            )


def correlation(a: np.ndarray, b: np.ndarray, least: int = 8) -> float | None:
    """Pearson's correlation of two columns, float64 [n]; None of fewer than `least` rows, or where one is constant."""
    if len(a) < least or a.std() < 1e-8 or b.std() < 1e-8:
        return None
    return float(np.corrcoef(a, b)[0, 1])


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """Completions of a prompt that are learned from."""

    tree: Tree
    rows: Sequence[Sampled]
    scores: Sequence[float]
    group: int

    def part(self, side: slice) -> _Scored:
        """Some of them."""
        tree = replace(self.tree, completions=self.tree.completions[side])
        return _Scored(tree, self.rows[side], self.scores[side], self.group)


def _tree(asking: Asking, rows: Sequence[Sampled], pairs: tuple[tuple[int, int], ...] = ()) -> Tree:
    completions = tuple(Completion(row.tokens, np.ones(len(row.tokens), dtype=np.bool_)) for row in rows)
    return Tree(asking.tokens, completions, pairs)
