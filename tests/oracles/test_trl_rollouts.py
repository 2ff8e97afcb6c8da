"""GRPO and RLOO beside TRL's own trainers: the same completions and scores give the same advantages and gradients.

TRL 1.16 has no PPO, in `trl.experimental` neither: there is nothing to hold PPO against but the float64 reference.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracles.test_trl import completion, moved
from truing.core.batch import Batch, Totals, collate
from truing.core.reduce import Metric, average
from truing.core.trees import Tree
from truing.models.language_model import LanguageModel
from truing.models.loading import LoadedModel, load_model
from truing.models.roles import FullModel
from truing.objectives.policy_gradient import PolicyGradient, RolloutObjective
from truing.objectives.registry import create
from truing.training.reference import ReferenceLogprobs
from truing.world.base_model import write_base_model
from truing.world.records import WorldSettings, write_world

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

PROMPTS, GROUP, LONGEST = 4, 3, 9

# TRL's settings, then ours.
GRPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the_paper": ({"loss_type": "grpo", "beta": 0.04}, {"kl_coef": 0.04}),
    "more_kl": ({"loss_type": "grpo", "beta": 0.5}, {"kl_coef": 0.5}),
    "bnpo": ({"loss_type": "bnpo", "beta": 0.04}, {"average": "token"}),
    "dapo": (
        {"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.28},
        {"average": "token", "kl_coef": 0.0, "clip_range_high": 0.28},
    ),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "beta": 0.0, "scale_rewards": "none"},
        {"average": "constant", "kl_coef": 0.0, "scale": "none", "longest": LONGEST},
    ),
    "batch": ({"loss_type": "grpo", "beta": 0.04, "scale_rewards": "batch"}, {"scale": "rollout"}),
    "none": ({"loss_type": "bnpo", "beta": 0.04, "scale_rewards": "none"}, {"scale": "none", "average": "token"}),
    "narrow": ({"loss_type": "grpo", "beta": 0.04, "epsilon": 0.05}, {"clip_range": 0.05}),
    "unfinished": (
        {"loss_type": "grpo", "beta": 0.3, "mask_truncated_completions": True},
        {"kl_coef": 0.3, "skip_unfinished": True},
    ),
    "unfinished_dr": (
        {"loss_type": "dr_grpo", "beta": 0.3, "mask_truncated_completions": True},
        {"kl_coef": 0.3, "skip_unfinished": True, "average": "constant", "longest": LONGEST},
    ),
}
RLOO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the_paper": ({"beta": 0.05}, {}),
    "more_kl": ({"beta": 0.6}, {"kl_coef": 0.6}),
    "no_kl": ({"beta": 0.0}, {"kl_coef": 0.0}),
    "clips": (
        {"beta": 0.05, "epsilon": 0.1, "epsilon_high": 0.4, "reward_clip_range": (-1.0, 1.0)},
        {"clip_range": 0.1, "clip_range_high": 0.4, "reward_clip": 1.0},
    ),
}


@dataclass(frozen=True)
class Told:
    """What TRL was given and what it made of it."""

    inputs: dict[str, torch.Tensor]
    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]
    metrics: dict[str, float]


@pytest.fixture
def start(tmp_path: Path) -> tuple[LoadedModel, list[str]]:
    """A model of its own for each test, for our attention is put into it; and prompts."""
    folder = tmp_path / "start"
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=10, pairs=PROMPTS))
    write_base_model(folder / "model")
    rows = [json.loads(line) for line in files.pairs.read_text(encoding="utf-8").splitlines()]
    loaded = load_model(folder / "model", dtype=torch.float32, device=torch.device("cpu"))
    return loaded, [row["prompt"] for row in rows]


def written(loaded: LoadedModel) -> tuple[list[list[int]], list[bool], list[float]]:
    """Completions of different lengths, whether they end with the end token, and their scores."""
    rng = np.random.default_rng(5)
    ends = [bool(rng.random() < 0.6) for _ in range(PROMPTS * GROUP)]
    end = loaded.tokenizer.eos_token_id
    rows = [
        [*rng.integers(4, 60, int(rng.integers(1, LONGEST))).tolist(), *([end] if ended else [rng.integers(4, 60)])]
        for ended in ends
    ]
    return [[int(token) for token in row] for row in rows], ends, [float(x) for x in rng.normal(0.3, 1.5, len(rows))]


def theirs(kind: str, settings: dict[str, Any], start: tuple[LoadedModel, list[str]], models: Any, out: Path) -> Told:
    """TRL's own path from completions to the loss: it writes with the old policy, then the policy has moved."""
    loaded, prompts = start
    policy, old, reference = models
    rows, _, scores = written(loaded)

    def told_scores(completions: list[str], **_: Any) -> list[float]:
        return scores

    config, trainer_class = {
        "grpo": (trl.GRPOConfig, trl.GRPOTrainer),
        "rloo": (trl.RLOOConfig, trl.RLOOTrainer),
    }[kind]
    trainer = trainer_class(
        model=copy.deepcopy(old),
        reward_funcs=[told_scores],
        args=config(
            output_dir=str(out),
            per_device_train_batch_size=PROMPTS * GROUP,
            per_device_eval_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            num_iterations=2,  # so that old log-probs are those of before
            max_completion_length=LONGEST,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            # By default TRL multiplies k3 by the ratio π/π_old (arXiv:2512.02556); the paper, eq. 3, does not.
            **({"use_bias_correction_kl": False} if kind == "grpo" else {}),
            **settings,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=loaded.tokenizer,
    )
    if trainer.ref_model is not None:
        trainer.ref_model.load_state_dict(reference.state_dict())
    trainer.model.eval()
    trainer._generate_single_turn = lambda *_, **__: (rows, None) if kind == "grpo" else rows
    inputs = trainer._generate_and_score_completions([{"prompt": p} for p in prompts for _ in range(GROUP)])
    trainer.model.load_state_dict(policy.state_dict())
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    return Told(inputs, loss.detach(), gradients, metrics)


def three(start: tuple[LoadedModel, list[str]]) -> tuple[Any, Any, Any]:
    """The policy, the policy that wrote the completions, and the reference."""
    reference = start[0].module
    old = moved(copy.deepcopy(reference), 0.02)
    return moved(copy.deepcopy(old), 0.03), old, reference


def ours(
    objective: PolicyGradient, start: tuple[LoadedModel, list[str]], told: Told, models: Any
) -> tuple[float, dict[str, float], list[float], Any]:
    """Loss, metrics, an advantage for each completion, and the model that has run backward over two micro-batches."""
    policy, old, reference = models
    rows, ended, scores = written(start[0])
    prompts = [
        np.asarray(ids[mask.bool()].tolist(), dtype=np.int32)
        for ids, mask in zip(told.inputs["prompt_ids"], told.inputs["prompt_mask"], strict=True)
    ]
    cut = [[[0, 1, 2], [3], [4, 5]], [[6, 7, 8], [9, 10], [11]]]
    writer, annotate = LanguageModel(old), ReferenceLogprobs(FullModel(LanguageModel(reference)), None)
    batches: list[Batch] = []
    for micro in cut:
        order = [i for tree in micro for i in tree]
        batch = collate([Tree(prompts[tree[0]], tuple(completion(rows[i]) for i in tree)) for tree in micro])
        with torch.no_grad():
            old_logprobs = writer.outputs(batch).logprobs
        batches.append(
            annotate(
                batch.with_columns(
                    old_logprobs=old_logprobs,
                    scores=torch.tensor([scores[i] for i in order]),
                    ended=torch.tensor([ended[i] for i in order]),
                    groups=torch.tensor([i // GROUP for i in order]),
                )
            )
        )
    prepared = objective.prepare(batches, {})
    batches = [batch.with_columns(**own) for batch, own in zip(batches, prepared.columns, strict=True)]
    module = copy.deepcopy(policy).requires_grad_(True)
    model = LanguageModel(module)
    loss, parts = 0.0, list[dict[str, Metric]]()
    for batch in batches:
        share = objective(model.outputs(batch), batch, Totals.of(batches))
        share.loss.backward()
        loss += float(share.loss.detach())
        parts.append(dict(share.metrics))
    advantages = [
        float(part[0]) for batch in batches for part in batch.column("advantages").split(list(batch.target_counts))
    ]
    return loss, average(parts) | prepared.metrics, advantages, module


def compare(told: Told, loss: float, module: Any, scale: float = 1.0) -> None:
    assert loss * scale == pytest.approx(told.loss.item(), rel=1e-5, abs=1e-6)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad * scale, told.gradients[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("name", GRPO)
def test_grpo_is_trls(start: tuple[LoadedModel, list[str]], tmp_path: Path, name: str) -> None:
    """Loss types grpo, bnpo, dapo and dr_grpo are averages over completions, tokens, tokens and a constant.

    bnpo and dapo differ only where TRL cuts a step into micro-batches: bnpo's mean is each micro-batch's own. The KL
    term is the paper's k3; TRL's default, k3 times π/π_old, is another.
    """
    settings, changes = GRPO[name]
    models = three(start)
    told = theirs("grpo", settings, start, models, tmp_path)
    objective = create({"use": "grpo", **changes})
    assert isinstance(objective, PolicyGradient)
    loss, metrics, advantages, module = ours(objective, start, told, models)
    if "mask_truncated_completions" in settings:
        finished = [
            a if ended else 0.0
            for a, ended in zip(told.inputs["advantages"].tolist(), written(start[0])[1], strict=True)
        ]
        assert advantages == pytest.approx(finished, rel=1e-5, abs=1e-6)
    else:
        assert advantages == pytest.approx(told.inputs["advantages"].tolist(), rel=1e-5, abs=1e-6)
        assert told.metrics["clip_ratio/low_mean"] > 0, "both sides of the clip should be tried"
        assert told.metrics["clip_ratio/high_mean"] > 0, "both sides of the clip should be tried"
    compare(told, loss, module)
    if settings["loss_type"] == "bnpo":
        assert metrics["policy/clipfrac"] == pytest.approx(told.metrics["clip_ratio/region_mean"], abs=1e-6)


def test_grpos_mean_over_tokens_counts_unfinished_completions_where_trls_does_not(
    start: tuple[LoadedModel, list[str]], tmp_path: Path
) -> None:
    """The loss is the same but for the number that divides it: all tokens here, those of finished completions there."""
    models = three(start)
    settings = {"loss_type": "dapo", "beta": 0.1, "mask_truncated_completions": True}
    told = theirs("grpo", settings, start, models, tmp_path)
    objective = create({"use": "grpo", "kl_coef": 0.1, "skip_unfinished": True, "average": "token"})
    assert isinstance(objective, PolicyGradient)
    loss, _, _, module = ours(objective, start, told, models)
    rows, ended, _ = written(start[0])
    tokens = [len(row) for row in rows]
    finished = sum(n for n, done in zip(tokens, ended, strict=True) if done)
    compare(told, loss, module, sum(tokens) / finished)


@pytest.mark.parametrize("name", RLOO)
def test_rloo_is_trls(start: tuple[LoadedModel, list[str]], tmp_path: Path, name: str) -> None:
    """With k1 in the reward; a penalty for unfinished completions TRL does not have."""
    settings, changes = RLOO[name]
    models = three(start)
    told = theirs("rloo", settings, start, models, tmp_path)
    objective = create({"use": "rloo", "missing_end_penalty": 0.0, **changes})
    assert isinstance(objective, PolicyGradient)
    loss, metrics, advantages, module = ours(objective, start, told, models)
    assert advantages == pytest.approx(told.inputs["advantages"].tolist(), rel=1e-5, abs=1e-5)
    compare(told, loss, module)
    assert metrics["policy/clipfrac"] == pytest.approx(told.metrics["clip_ratio/region_mean"], abs=1e-6)
    assert 0 < metrics["policy/clipfrac"] < 1
    if settings["beta"]:
        tokens = np.mean([len(row) for row in written(start[0])[0]])
        assert metrics["objective/kl"] / tokens == pytest.approx(told.metrics["kl"], rel=1e-4, abs=1e-6)
    assert math.isfinite(loss)


@pytest.mark.parametrize("penalty", [0.0, 2.5])
def test_online_dpo_is_trls(start: tuple[LoadedModel, list[str]], tmp_path: Path, penalty: float) -> None:
    """From scores to the choice, the loss and the gradient, with and without a penalty for unfinished completions."""
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    loaded, prompts = start
    policy, _, reference = three(start)
    rows, ended, scores = (part[: 2 * PROMPTS] for part in written(loaded))  # first answers, then second ones

    def told_scores(completions: list[str], **_: Any) -> list[float]:
        return scores

    trainer = OnlineDPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        reward_funcs=told_scores,
        args=OnlineDPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=PROMPTS,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            beta=0.1,
            missing_eos_penalty=penalty or None,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=loaded.tokenizer,
    )
    ids = [loaded.tokenizer(prompt)["input_ids"] for prompt in prompts]
    pad = loaded.tokenizer.pad_token_id
    left = max(len(row) for row in ids)
    prompt_ids = torch.tensor([[pad] * (left - len(row)) + row for row in ids * 2])
    completion_ids = torch.tensor([row + [pad] * (LONGEST - len(row)) for row in rows])
    counted = torch.tensor([[1] * len(row) + [0] * (LONGEST - len(row)) for row in rows])
    seen = torch.tensor([[0] * (left - len(row)) + [1] * len(row) for row in ids * 2])
    trainer._generate = lambda *_, **__: (prompt_ids, seen, completion_ids, counted, {})
    expected = trainer.training_step(trainer.model, {"prompt": prompts})
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}

    objective = create({"use": "online_dpo", "missing_end_penalty": penalty})
    assert isinstance(objective, RolloutObjective)
    trees = []
    for number, prompt in enumerate(ids):
        both = [number, number + PROMPTS]
        shaped = objective.shaped(torch.tensor([scores[i] for i in both]), torch.tensor([ended[i] for i in both]))
        picked = objective.pick(shaped.tolist())
        answers = tuple(completion(rows[both[i]]) for i in picked.keep)
        trees.append(Tree(np.asarray(prompt, dtype=np.int32), answers, picked.pairs))
    compare_pairs(objective, trees, policy, reference, expected, gradients)


def compare_pairs(
    objective: RolloutObjective,
    trees: list[Tree],
    policy: Any,
    reference: Any,
    expected: torch.Tensor,
    gradients: dict[str, torch.Tensor],
) -> None:
    annotate = ReferenceLogprobs(FullModel(LanguageModel(reference)), None)
    batches = [annotate(collate(part)) for part in (trees[:1], trees[1:])]
    model = LanguageModel(policy.requires_grad_(True))
    loss = 0.0
    for batch in batches:
        share = objective(model.outputs(batch), batch, Totals.of(batches))
        share.loss.backward()
        loss += float(share.loss.detach())
    compare(Told({}, expected, gradients, {}), loss, policy)
