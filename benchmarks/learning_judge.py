"""What the learning benchmark measures of a trained model: true reward, a reward model's score, KL, and accuracy."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from learning_world import WORLD, word_count
from truing.build.load_result import Opened, open_result, open_scorer
from truing.core.samples import Sampled
from truing.core.trees import Completion, Tree
from truing.data.packing import pack
from truing.models.decoding import Choice
from truing.models.sampling import sample
from truing.world.base_model import MAX_NEW_TOKENS, TEMPERATURE
from truing.world.grammar import split_words
from truing.world.reward import true_reward

SAMPLES = 4  # answers to a prompt
SEED = 1
Z = 1.959964
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 % points of Student's t, by number of seeds


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95 % interval."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        return cls(fmean(values), Z * stdev(values) / math.sqrt(len(values)))

    @classmethod
    def over_seeds(cls, values: Sequence[float]) -> Estimate:
        """By Student's t: few seeds."""
        if len(values) not in T:
            return cls(fmean(values), math.nan)
        return cls(fmean(values), T[len(values)] * stdev(values) / math.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}"


@dataclass(frozen=True)
class Verdict:
    """What was found of one policy: a number a prompt, the mean over its answers."""

    rewards: list[float]  # true reward at the tour's temperature
    kl: list[float]  # nats from SFT, of answers at temperature 1
    words: list[float]
    ended: float
    proxies: dict[str, list[float]]  # scores of reward models


def judge(
    policy: Path, start: Path, prompts: Sequence[str], scorers: dict[str, Path], *, whole: bool = True
) -> Verdict:
    """Sample answers and look at them from all sides; `whole` false leaves the KL out."""
    opened = open_result(policy)
    groups = written(opened, prompts, TEMPERATURE)
    texts = [[decoded(opened, row) for row in rows] for rows in groups]
    trees = as_trees(opened, prompts, groups)
    return Verdict(
        rewards=[fmean(true_reward(p, t, WORLD) for t in own) for p, own in zip(prompts, texts, strict=True)],
        kl=kl_from(opened, start, prompts) if whole else [],
        words=[fmean(word_count(text) for text in own) for own in texts],
        ended=fmean(row.ended for rows in groups for row in rows),
        proxies={name: by_prompt(scores_of(open_scorer(path), trees)) for name, path in scorers.items()},
    )


def written(opened: Opened, prompts: Sequence[str], temperature: float) -> list[list[Sampled]]:
    tokenizer = opened.loaded.tokenizer
    return sample(
        opened.model,
        [tokenizer(prompt)["input_ids"] for prompt in prompts],
        count=SAMPLES,
        max_new_tokens=MAX_NEW_TOKENS,
        choice=Choice(temperature),
        seed=SEED,
        end_tokens=opened.loaded.end_tokens,
    )


def decoded(opened: Opened, row: Sampled) -> str:
    return opened.loaded.tokenizer.decode(row.tokens, skip_special_tokens=True).strip()


def as_trees(opened: Opened, prompts: Sequence[str], groups: Sequence[Sequence[Sampled]]) -> list[Tree]:
    return [
        Tree(
            np.asarray(opened.loaded.tokenizer(prompt)["input_ids"], dtype=np.int32),
            tuple(Completion(row.tokens, np.ones(len(row.tokens), dtype=np.bool_)) for row in rows),
        )
        for prompt, rows in zip(prompts, groups, strict=True)
    ]


def by_prompt(values: Sequence[float]) -> list[float]:
    return [fmean(values[i : i + SAMPLES]) for i in range(0, len(values), SAMPLES)]


def scores_of(opened: Opened, trees: Sequence[Tree]) -> list[float]:
    """The reward model's score of every completion, in order."""
    found: list[list[float]] = [[] for _ in trees]
    for rows in pack([tree.unshared_size for tree in trees], 4096):
        with torch.no_grad():
            scores = iter(opened.model.completion_scores(opened.model.collate([trees[row] for row in rows])).tolist())
        for row in rows:
            found[row] = [next(scores) for _ in trees[row].completions]
    return [score for own in found for score in own]


def kl_from(opened: Opened, start: Path, prompts: Sequence[str]) -> list[float]:
    """Monte Carlo estimate of KL(policy ‖ start) in nats a completion, prompt by prompt."""
    groups = written(opened, prompts, 1.0)
    reference = open_result(start)
    found = []
    for tree, rows in zip(as_trees(opened, prompts, groups), groups, strict=True):
        with torch.no_grad():
            there = reference.model.outputs(reference.model.collate([tree])).logprobs
        here = torch.from_numpy(np.concatenate([row.logprobs for row in rows]))
        found.append(float((here - there).double().sum()) / len(rows))
    return found


def accuracy(scorer: Path, file: Path) -> list[float]:
    """Of each comparison: 1 where the reward model ranks the chosen answer first, a half where it cannot say."""
    opened = open_scorer(scorer)
    trees = [_tree(opened, row["prompt"], [row["chosen"], row["rejected"]]) for row in rows_of(file)]
    scores = scores_of(opened, trees)
    return [_won(scores[i], scores[i + 1]) for i in range(0, len(scores), 2)]


def looks(run: Path, scorer: Path) -> list[dict[str, Any]]:
    """What a run's samples.jsonl shows, step by step: true rewards and the reward model's scores."""
    opened = open_scorer(scorer)
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in rows_of(run / "samples.jsonl"):
        by_step.setdefault(row["step"], []).append(row)
    return [
        {
            "step": step,
            "true": [true_reward(row["prompt"], row["completion"].strip(), WORLD) for row in rows],
            "proxy": scores_of(
                opened, [_tree(opened, row["prompt"], [row["completion"]], row["ended"]) for row in rows]
            ),
        }
        for step, rows in by_step.items()
    ]


def true_accuracy(file: Path) -> list[float]:
    """The same of a judge who knows the true reward."""
    return [
        _won(*(true_reward(row["prompt"], row[key], WORLD) for key in ("chosen", "rejected"))) for row in rows_of(file)
    ]


def _tree(opened: Opened, prompt: str, answers: Sequence[str], ended: bool = True) -> Tree:
    tokenizer = opened.loaded.tokenizer
    end = [tokenizer.eos_token_id] if ended else []
    rows = [[*tokenizer(answer, add_special_tokens=False)["input_ids"], *end] for answer in answers]
    return Tree(
        np.asarray(tokenizer(prompt)["input_ids"], dtype=np.int32),
        tuple(Completion(np.asarray(row, dtype=np.int32), np.ones(len(row), dtype=np.bool_)) for row in rows),
    )


def length_accuracy(file: Path) -> list[float]:
    """The same of a judge who takes the longer answer."""
    return [_won(word_count(row["chosen"]), word_count(row["rejected"])) for row in rows_of(file)]


def bag_of_words_accuracy(training: Path, file: Path, penalty: float = 1e-3) -> list[float]:
    """The same of a logistic regression on differences of word counts, words of the answers alone."""
    pairs = rows_of(training)
    words = sorted({word for row in pairs for key in ("chosen", "rejected") for word in split_words(row[key])})
    index = {word: place for place, word in enumerate(words)}

    def differences(rows: Sequence[dict[str, str]]) -> torch.Tensor:
        out = torch.zeros(len(rows), len(words), dtype=torch.float64)
        for place, row in enumerate(rows):
            for key, sign in (("chosen", 1), ("rejected", -1)):
                for word, count in Counter(split_words(row[key])).items():
                    if word in index:
                        out[place, index[word]] += sign * count
        return out

    features = differences(pairs)
    weights = torch.zeros(len(words), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -torch.nn.functional.logsigmoid(features @ weights).mean() + penalty * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return [_won(score, 0.0) for score in (differences(rows_of(file)) @ weights).tolist()]


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _won(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0
