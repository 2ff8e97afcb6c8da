"""The held-out judge: scores answers of the policy to prompts that nothing is trained on, while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from truing.build.cast import judged_by
from truing.build.policy import BuiltPolicy
from truing.build.rewards import answers_of, build_reward, check_reward
from truing.core.errors import DataError, RecipeError
from truing.core.trees import Tree
from truing.data.dataset import Dataset, read_rows
from truing.data.encoding import encode_prompts
from truing.data.examples import Example, Prompt
from truing.data.settings import DataSettings
from truing.models.decoding import Choice
from truing.models.sampling import sample
from truing.recipe.schema import Stage
from truing.rl.rewards import Keys, Reward
from truing.rl.settings import RewardSettings
from truing.training.settings import EvaluationSettings
from truing.training.shared_rollouts import FirstRanksReward

KEYS = Keys("evaluation.judge", "evaluation.judge_timeout", stages=True)


def check_judge(stage: Stage, earlier: Sequence[str]) -> None:
    """Find what is wrong with a stage's judge before anything is trained: its prompts, its files, and by trying it."""
    settings = stage.evaluation
    if settings.judge is None:
        return
    if settings.judge_path is None and stage.data.eval_path is None and stage.data.holdout == 0:
        raise RecipeError(
            "evaluation.judge needs prompts that nothing is trained on: give data.holdout, data.eval_path or "
            "evaluation.judge_path"
        )
    examples: Sequence[Example] = read_rows(_prompt_rows(stage), "prompt", needed_by="evaluation.judge").examples
    check_reward(RewardSettings(use=settings.judge), settings.judge_timeout, examples, earlier, KEYS)


def with_judge_stage(stage: Stage, earlier: Mapping[str, Path | None]) -> Stage:
    """Put the result of an earlier reward stage, by name, where the judge means it."""
    result = earlier.get(stage.evaluation.judge or "")
    if result is None:
        return stage
    return stage.model_copy(update={"evaluation": stage.evaluation.model_copy(update={"judge": str(result)})})


def _prompt_rows(stage: Stage) -> DataSettings:
    """Where the prompts for the judge are read from, as data of a stage that learns from prompts."""
    source = stage.evaluation.judge_path or stage.data.eval_path
    if source is None:
        return stage.data
    update = {"path": source, "eval_path": None, "holdout": 0.0, "limit": None}
    own = stage.evaluation.judge_path is not None
    return stage.data.model_copy(update={**update, **({"format": None, "columns": {}} if own else {})})


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as tokens and as the judge sees it."""

    tree: Tree
    prompt: Prompt


def asked_prompts(stage: Stage, built: BuiltPolicy, dataset: Dataset) -> tuple[Asked, ...]:
    """The prompts that the judge is asked about, each once; none where the stage has no judge, or is a reward model.

    Those too long for an answer to fit behind them are left out. Raises DataError where one is trained on, or none is
    left.
    """
    settings = stage.evaluation
    if settings.judge is None or built.model.scores:
        return ()
    rows = read_rows(_prompt_rows(stage), "prompt", needed_by="evaluation.judge").examples
    held_out = {tree.origin for tree in dataset.held_out}
    prompts = [each for each in rows if isinstance(each, Prompt) and (settings.judge_path or each.origin in held_out)]
    tokens = encode_prompts(
        [each.prompt for each in prompts], built.loaded.tokenizer, dataset.template, built.loaded.end_tokens
    )
    trees = [Tree(np.asarray(own, dtype=np.int32), (), origin=e.origin) for own, e in zip(tokens, prompts, strict=True)]
    _refuse_trained(trees, dataset.train)
    room = (built.model.max_positions or 1 << 30) - settings.judge_max_new_tokens
    first: dict[bytes, Asked] = {}
    for tree, prompt in zip(trees, prompts, strict=True):
        if len(tree.prompt) <= room:
            first.setdefault(tree.prompt.tobytes(), Asked(tree, prompt))
    if not first:
        raise DataError(
            f"evaluation.judge has no prompt to be asked about: of {len(trees)} none leaves room for "
            f"{settings.judge_max_new_tokens} new tokens; lower evaluation.judge_max_new_tokens, or give other prompts"
        )
    return tuple(first.values())[: settings.judge_completions]


def _refuse_trained(trees: Sequence[Tree], train: Sequence[Tree]) -> None:
    trained = {tree.prompt.tobytes(): tree.origin for tree in train}
    shared = next((tree for tree in trees if tree.prompt.tobytes() in trained), None)
    if shared is not None:
        raise DataError(
            f"evaluation.judge would be asked about a prompt that is trained on: {shared.origin}, the same as "
            f"{trained[shared.prompt.tobytes()]}; give evaluation.judge_path prompts that nothing is trained on"
        )


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutJudge:
    """Has the policy answer, with the same random numbers each time, and scores the answers."""

    built: BuiltPolicy
    asked: tuple[Asked, ...]
    reward: Reward
    settings: EvaluationSettings
    seed: int

    @classmethod
    def of(cls, stage: Stage, built: BuiltPolicy, asked: tuple[Asked, ...]) -> HeldOutJudge | None:
        """Start the judge of a stage that has prompts for one; a caller's random state stays as it was."""
        settings = stage.evaluation
        if settings.judge is None or not asked:
            return None
        with torch.random.fork_rng():
            judged = judged_by(stage, built)
            reward = build_reward(RewardSettings(use=settings.judge), judged, settings.judge_timeout, KEYS)
        if isinstance(reward, FirstRanksReward) and reward.reward is not None:
            reward = reward.reward  # the first rank judges by itself
        return cls(built, asked, reward, settings, stage.seed)

    def __call__(self) -> dict[str, float]:
        """Return the mean score, half the width of its 95 % interval, and the length and end rate of the answers."""
        settings = self.settings
        with torch.no_grad(), self.built.policy.active():
            groups = sample(
                self.built.model,
                [each.tree.prompt.tolist() for each in self.asked],
                count=-(-settings.judge_completions // len(self.asked)),
                max_new_tokens=settings.judge_max_new_tokens,
                choice=Choice(settings.judge_temperature),
                seed=int(np.random.SeedSequence((self.seed, 1 << 34)).generate_state(1)[0]),
                end_tokens=self.built.loaded.end_tokens,
            )
        trees, prompts = [each.tree for each in self.asked], [each.prompt for each in self.asked]
        scores = np.array(self.reward(answers_of(trees, prompts, groups, self.built.loaded.tokenizer)))
        rows = [row for group in groups for row in group]
        return {
            "judge/score": float(scores.mean()),
            "judge/half_width": 1.96 * float(scores.std(ddof=1)) / math.sqrt(len(scores)),
            "judge/length": float(np.mean([len(row.tokens) for row in rows])),
            "judge/end_rate": float(np.mean([row.ended for row in rows])),
        }

    def close(self) -> None:
        """End its process."""
        self.reward.close()
