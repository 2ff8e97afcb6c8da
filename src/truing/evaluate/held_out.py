"""Looks at a result on held-out data: log-probs of given answers, and completions of its own, judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from truing.build.load_result import Opened, is_scorer, open_result, open_scorer
from truing.build.rewards import Judged, answers_of, as_tree, build_reward
from truing.build.score import tree_scores
from truing.core.reduce import sum_by_completion
from truing.core.samples import Sampled
from truing.core.trees import ExampleKind, Tree
from truing.data.conversion import FORMAT_OF
from truing.data.dataset import Dataset, load
from truing.data.packing import pack
from truing.data.settings import DataSettings
from truing.models.decoding import CACHE_TOKENS, Choice
from truing.models.language_model import LanguageModel, evaluating
from truing.models.sampling import sample
from truing.rl.rewards import Keys
from truing.rl.settings import RewardSettings
from truing.training.progress import Reporter

MICRO_TOKENS = 4096
AT_ONCE = 64
"""Prompts that are sampled together at most."""
KEYS = Keys("--reward", "--reward-timeout")
GENERAL_LENGTH, GENERAL_LIMIT = 256, 128
"""Tokens of a general text, and how many texts are used, at most."""


@dataclass(frozen=True, slots=True)
class Exam:
    """What every result is asked. Files are in the formats of `FORMAT_OF`; None where there is nothing of the kind."""

    start: str
    """The model or adapter folder that KL is measured from."""
    template: str | None
    max_length: int
    answers: str | None
    """Demonstrations."""
    comparisons: str | None
    prompts: str | None
    general: str | None
    """Text as a person has it."""
    reward: str | None
    reward_timeout: float
    max_new_tokens: int
    count: int
    """Completions of each prompt."""
    seed: int


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Of each row: Σ log p of its target tokens in nats, and how many there are."""

    rows: tuple[int, ...]
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Of each comparison: log-probs in nats of both answers and their lengths, or a reward model's scores."""

    rows: tuple[int, ...]
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]
    chosen_tokens: tuple[int, ...]
    rejected_tokens: tuple[int, ...]
    by_score: bool


@dataclass(frozen=True, slots=True)
class Written:
    """A completion of the result's own, sampled at temperature 1."""

    row: int
    """Of its prompt."""
    text: str
    tokens: int
    ended: bool
    log_ratio: float
    """log π(completion) − log π_start(completion), in nats."""
    score: float | None
    """The judge's."""


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was found of one result."""

    answers: Likelihoods | None
    pairs: Pairs | None
    written: tuple[Written, ...] | None
    general: Likelihoods | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Measured:
        """Read back what `as_json` gave, also after JSON has made lists of its tuples."""
        answers, pairs, general = kept["answers"], kept["pairs"], kept["general"]
        return cls(
            None if answers is None else Likelihoods(**_tuples(answers)),
            None if pairs is None else Pairs(**_tuples(pairs)),
            None if kept["written"] is None else tuple(Written(**one) for one in kept["written"]),
            None if general is None else Likelihoods(**_tuples(general)),
        )


def measure(result: Path, exam: Exam, reporter: Reporter) -> Measured:
    """Put a result, or the start itself, through the exam; a reward model is asked for its preferences alone."""
    if is_scorer(result):
        return _measure_scorer(open_scorer(result), exam, reporter)
    opened = open_result(result)
    answers = _likelihoods(opened, exam, exam.answers, reporter)
    pairs = _preferences(opened, exam, reporter)
    general = _general(opened, exam, reporter)
    if exam.prompts is None:
        return Measured(answers, pairs, None, general)
    dataset = _load(opened, exam, exam.prompts, "prompt")
    groups = _write(opened, dataset.train, exam, reporter)
    trees = [as_tree(tree, group) for tree, group in zip(dataset.train, groups, strict=True)]
    own = completion_logprobs(opened.model, trees, reporter)
    scores = _scores(opened, dataset, groups, exam)
    tokenizer = opened.tokenizer
    del opened  # the start takes its place
    before = completion_logprobs(open_result(Path(exam.start)).model, trees, reporter)
    ratios = [[now - then for now, then in zip(*pair, strict=True)] for pair in zip(own, before, strict=True)]
    return Measured(answers, pairs, _written(dataset.train, groups, ratios, scores, tokenizer), general)


def completion_logprobs(model: LanguageModel, trees: Sequence[Tree], reporter: Reporter) -> list[list[float]]:
    """Σ log p of the targets of every completion, tree by tree, in nats."""
    reporter.begin("look", len(trees))
    found: list[list[float]] = [[] for _ in trees]
    done = 0
    shared = model.sharing == "tree"
    with torch.no_grad(), evaluating(model.module):
        for rows in pack([tree.size if shared else tree.unshared_size for tree in trees], MICRO_TOKENS):
            batch = model.collate([trees[row] for row in rows]).to(model.device)
            sums = iter(sum_by_completion(model.outputs(batch).logprobs, batch).tolist())
            for row in rows:
                found[row] = [next(sums) for _ in trees[row].completions]
            done += len(rows)
            reporter.advance(done)
    reporter.end()
    return found


def _measure_scorer(opened: Opened, exam: Exam, reporter: Reporter) -> Measured:
    if exam.comparisons is None:
        return Measured(None, None, None, None)
    trees = _load(opened, exam, exam.comparisons, "comparison").train
    scores = tree_scores(opened.model, trees, reporter)
    pairs = _pairs(trees, list(zip(scores[::2], scores[1::2], strict=True)), by_score=True)
    return Measured(None, pairs, None, None)


def _load(opened: Opened, exam: Exam, path: str, kind: ExampleKind) -> Dataset:
    limit = exam.max_length
    if kind == "prompt" and opened.model.max_positions is not None:
        limit = min(limit, opened.model.max_positions - exam.max_new_tokens)
    settings = DataSettings.model_validate({"path": path, "format": FORMAT_OF[kind], "max_length": limit})
    return _encoded(opened, exam, settings, kind)


def _encoded(opened: Opened, exam: Exam, settings: DataSettings, kind: ExampleKind) -> Dataset:
    ends = opened.loaded.end_tokens
    return load(
        settings, kind, opened.loaded.tokenizer, exam.template, ends, lambda done, total: None, needed_by="comparing"
    )


def _likelihoods(opened: Opened, exam: Exam, path: str | None, reporter: Reporter) -> Likelihoods | None:
    if path is None:
        return None
    return _of_trees(opened.model, _load(opened, exam, path, "demonstration").train, reporter)


def _general(opened: Opened, exam: Exam, reporter: Reporter) -> Likelihoods | None:
    if exam.general is None:
        return None
    length = min(GENERAL_LENGTH, opened.model.max_positions or GENERAL_LENGTH)
    settings = DataSettings(path=exam.general, max_length=length, loss_on="all", limit=GENERAL_LIMIT)
    return _of_trees(opened.model, _encoded(opened, exam, settings, "demonstration").train, reporter)


def _of_trees(model: LanguageModel, trees: Sequence[Tree], reporter: Reporter) -> Likelihoods:
    sums = completion_logprobs(model, trees, reporter)
    return Likelihoods(_rows(trees), tuple(own[0] for own in sums), tuple(tree.supervised for tree in trees))


def _preferences(opened: Opened, exam: Exam, reporter: Reporter) -> Pairs | None:
    if exam.comparisons is None:
        return None
    trees = _load(opened, exam, exam.comparisons, "comparison").train
    sums = completion_logprobs(opened.model, trees, reporter)
    return _pairs(trees, [(own[0], own[1]) for own in sums], by_score=False)


def _pairs(trees: Sequence[Tree], values: Sequence[tuple[float, float]], *, by_score: bool) -> Pairs:
    """Chosen stands first in a tree of one comparison."""
    lengths = [[int(part.mask.sum()) for part in tree.completions] for tree in trees]
    chosen, rejected = zip(*values, strict=True)
    return Pairs(
        _rows(trees), chosen, rejected, tuple(own[0] for own in lengths), tuple(own[1] for own in lengths), by_score
    )


def _rows(trees: Sequence[Tree]) -> tuple[int, ...]:
    return tuple(tree.origin.row for tree in trees if tree.origin is not None)


def _write(opened: Opened, trees: Sequence[Tree], exam: Exam, reporter: Reporter) -> list[list[Sampled]]:
    """Sample the same prompts together under the same seeds, whoever writes."""
    at_once = max(1, min(AT_ONCE, CACHE_TOKENS // (exam.count * exam.max_new_tokens)))
    found: list[list[Sampled]] = []
    reporter.begin("write", len(trees))
    for start in range(0, len(trees), at_once):
        seed = int(np.random.SeedSequence((exam.seed, start)).generate_state(1)[0])
        with torch.no_grad():
            found += sample(
                opened.model,
                [tree.prompt.tolist() for tree in trees[start : start + at_once]],
                count=exam.count,
                max_new_tokens=exam.max_new_tokens,
                choice=Choice(1.0),
                seed=seed,
                end_tokens=opened.loaded.end_tokens,
            )
        reporter.advance(len(found))
    reporter.end()
    return found


def _scores(
    opened: Opened, dataset: Dataset, groups: Sequence[Sequence[Sampled]], exam: Exam
) -> list[float] | list[None]:
    """The judge's score of every completion, flat."""
    if exam.reward is None:
        return [None for group in groups for _ in group]
    loaded = opened.loaded
    judged = Judged(loaded.name, loaded.digest, loaded.tokenizer, None, storage=loaded.storage)
    judge = build_reward(RewardSettings(use=exam.reward), judged, exam.reward_timeout, KEYS)
    prompts = [dataset.prompts[tree.origin] for tree in dataset.train if tree.origin is not None]
    try:
        return judge(answers_of(dataset.train, prompts, groups, opened.loaded.tokenizer))
    finally:
        judge.close()


def _written(
    trees: Sequence[Tree],
    groups: Sequence[Sequence[Sampled]],
    ratios: Sequence[Sequence[float]],
    scores: Sequence[float | None],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Written, ...]:
    of_each = iter(scores)
    return tuple(
        Written(
            row,
            str(tokenizer.decode(one.tokens, skip_special_tokens=True)),
            len(one.tokens),
            one.ended,
            ratio,
            next(of_each),
        )
        for row, group, own in zip(_rows(trees), groups, ratios, strict=True)
        for one, ratio in zip(group, own, strict=True)
    )


def _tuples(kept: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
