"""Makes rewards of what a person names: Python functions, and reward models beside the policy that they judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from truing.build.load_result import (
    RESULT,
    adapter_base,
    check_same_vocabulary,
    check_scorer,
    open_scorer,
    result_folder,
)
from truing.core.batch import Batch
from truing.core.errors import RecipeError, RunError, suggest
from truing.core.samples import Sampled
from truing.core.trees import Completion, Tree
from truing.data.examples import Example, Prompt, Words
from truing.data.packing import pack
from truing.models.folder import model_digest
from truing.models.heads import attach_score_head
from truing.models.language_model import LanguageModel
from truing.models.loading import SCORE
from truing.models.lora.adapters import Adapters
from truing.models.lora.peft_format import load_adapter
from truing.models.nf4 import Storage, storage_of
from truing.models.roles import AdapterOverBase, FullModel, Role
from truing.rl.rewards import IN_RECIPE, Answers, FunctionReward, Keys, ModelReward, Reward, Turns
from truing.rl.settings import RewardSettings
from truing.training.ranks import ALONE, Ranks
from truing.training.shared_rollouts import FirstRanksReward

PROBES = ("Yes.", "No, not at all.")
"""Completions that a Python reward is tried on before anything is computed."""

MICRO_TOKENS = 4096
"""Tokens that a reward model reads at a time, where nobody says."""


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """A base whose weights reward adapters may share."""

    model: LanguageModel
    adapters: Adapters


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What reward models have to know of the policy whose completions they read."""

    name: str
    """Folder or hub id of its base."""
    digest: str | None
    """Of its base; None where that is no model of its own on the disk, so that no adapter can be over it."""
    tokenizer: PreTrainedTokenizerBase
    seat: Seat | None
    """Where adapters over the same base are put; None where each reward model is loaded by itself."""
    dtype: torch.dtype | None = None
    """Of reward models that are loaded by themselves; None keeps their own."""
    micro_tokens: int = MICRO_TOKENS
    ranks: Ranks = ALONE
    """Who else judges; Python functions run beside the first alone."""
    storage: Storage = None
    """How its base is stored: an adapter over the same numbers in another form is not over it."""

    def is_over(self, path: Path) -> bool:
        """Whether a reward model is an adapter over the policy's base."""
        base = adapter_base(path)
        if base is None or self.digest is None or storage_of(result_folder(path)) != self.storage:
            return False
        return base == self.name or model_digest(base) == self.digest


def is_function(use: str) -> bool:
    """Whether a reward is written as `./rewards.py:fn`."""
    return ".py:" in use


def build_reward(settings: RewardSettings, judged: Judged, timeout: float, keys: Keys = IN_RECIPE) -> Reward:
    """Start a function's process, or load reward models."""
    if is_function(settings.uses[0]):
        if not judged.ranks.several:
            return FunctionReward(settings.uses[0], timeout, keys)
        own = FunctionReward(settings.uses[0], timeout, keys) if judged.ranks.first else None
        return FirstRanksReward(settings.uses[0].rpartition(":")[2], own, judged.ranks)
    capacity = judged.micro_tokens
    roles = tuple(_role(Path(use), judged) for use in settings.uses)

    def batches(trees: Sequence[Tree]) -> Iterator[tuple[Sequence[int], Batch]]:
        model = roles[0].model
        shared = model.sharing == "tree"
        for rows in pack([tree.size if shared else tree.unshared_size for tree in trees], capacity):
            yield rows, model.collate([trees[row] for row in rows])

    return ModelReward(_short(settings.uses[0]), roles, settings.deviations, batches)


def named_apart(reward: Reward, others: Sequence[Reward]) -> Reward:
    """Give a reward a name that none of the others has."""
    names = {other.name for other in others}
    base, number = reward.name, 2
    while reward.name in names:
        reward.name = f"{base}-{number}"
        number += 1
    return reward


def _role(path: Path, judged: Judged) -> Role:
    remedy = "a reward model reads the policy's token ids, so train it from the same base"
    check_same_vocabulary(path, judged.tokenizer, judged.name, remedy)
    seat = judged.seat
    if seat is not None and judged.is_over(path):
        attach_score_head(seat.model.module, SCORE)
        name = f"reward{sum(n.startswith('reward') for n in seat.adapters.names)}"
        load_adapter(seat.adapters, name, result_folder(path))
        seat.adapters.set_trainable(name, False)
        return AdapterOverBase(seat.model, seat.adapters, name)
    opened = open_scorer(path, judged.dtype)
    opened.loaded.module.requires_grad_(False)
    if opened.adapters is None:
        return FullModel(opened.model)
    return AdapterOverBase(opened.model, opened.adapters, RESULT)


def _short(use: str) -> str:
    """A name for metrics: of `runs/chain/2-reward/final`, `2-reward`."""
    parts = [part for part in Path(use).parts if part != "final"]
    return parts[-1] if parts else use


def check_reward(
    settings: RewardSettings,
    timeout: float,
    examples: Sequence[Example],
    earlier: Sequence[str] = (),
    keys: Keys = IN_RECIPE,
) -> None:
    """Find what is wrong with a reward before anything is computed: files, folders, and a function by trying it.

    `earlier` are names of stages whose results are reward models, once they are there.
    """
    if is_function(settings.uses[0]):
        if len(settings.uses) > 1:
            raise RecipeError(f"{keys.rewards}: several models make one ensemble; give functions one by one")
        _try(settings.uses[0], timeout, examples, keys)
        return
    for use in settings.uses:
        if use in earlier:
            continue
        if not Path(use).exists():
            stage = f", and no earlier reward stage of that name{suggest(use, earlier)}" if keys.stages else ""
            raise RunError(
                f"{keys.rewards}: there is no run or model folder '{use}'{stage}; a Python function is written "
                "./rewards.py:fn"
            )
        if Path(use).is_file():
            raise RunError(
                f"{keys.rewards}: '{use}' is a file; expected the folder of a reward model, or a Python function "
                "written ./rewards.py:fn"
            )
        check_scorer(Path(use))


def _try(spec: str, timeout: float, examples: Sequence[Example], keys: Keys) -> None:
    prompts = [example for example in examples if isinstance(example, Prompt)][: len(PROBES)]
    names = sorted({name for example in examples if isinstance(example, Prompt) for name in example.columns})
    reward = FunctionReward(spec, timeout, keys)
    try:
        reward(
            Answers(
                [as_plain(example.prompt) for example in prompts],
                list(PROBES[: len(prompts)]),
                columns_of([example.columns for example in prompts], names),
                [],
            )
        )
    finally:
        reward.close()


def as_plain(words: Words) -> str | Turns:
    """A prompt as a reward function gets it: text, or a list of {role, content}."""
    return words if isinstance(words, str) else [{"role": turn.role, "content": turn.content} for turn in words]


def columns_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Rows' other columns as a reward function gets them; None where a row has none."""
    return {name: [row.get(name) for row in rows] for name in names}


def answers_of(
    trees: Sequence[Tree],
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Sampled]],
    tokenizer: PreTrainedTokenizerBase,
) -> Answers:
    """What rewards see of completions, as they see it in training; the trees are those of the prompts."""
    each = [(prompt, row) for prompt, group in zip(prompts, groups, strict=True) for row in group]
    names = sorted({name for prompt in prompts for name in prompt.columns})
    return Answers(
        [as_plain(prompt.prompt) for prompt, _ in each],
        [str(tokenizer.decode(row.tokens, skip_special_tokens=True)) for _, row in each],
        columns_of([prompt.columns for prompt, _ in each], names),
        [as_tree(tree, group) for tree, group in zip(trees, groups, strict=True)],
    )


def as_tree(prompt: Tree, group: Sequence[Sampled]) -> Tree:
    """A prompt with completions that a model wrote, every token a target."""
    return Tree(
        prompt.prompt,
        tuple(Completion(row.tokens, np.ones(len(row.tokens), dtype=np.bool_)) for row in group),
        origin=prompt.origin,
    )
