"""Losses and gradients beside TRL's own trainer, wherever the definitions are the same. Needs the extra `bench`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from truing.core.batch import Totals, collate
from truing.core.trees import Completion, Tree
from truing.models.language_model import LanguageModel
from truing.models.loading import load_model
from truing.models.roles import FullModel
from truing.objectives.base import Objective
from truing.objectives.registry import create
from truing.training.foresight import foresee
from truing.training.reference import ReferenceLogprobs
from truing.world.base_model import write_base_model
from truing.world.records import WorldSettings, write_world

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

ROWS = 7

# TRL's settings, then ours.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dpo": ({"loss_type": "sigmoid"}, {"use": "dpo"}),
    "hinge": ({"loss_type": "hinge"}, {"use": "hinge", "beta": 0.1}),
    "ipo": ({"loss_type": "ipo"}, {"use": "ipo"}),
    "exo": ({"loss_type": "exo_pair", "label_smoothing": 0.01}, {"use": "exo", "label_smoothing": 0.01}),
    "nca": ({"loss_type": "nca_pair"}, {"use": "nca", "beta": 0.1}),
    "robust": ({"loss_type": "robust", "label_smoothing": 0.2}, {"use": "robust", "label_smoothing": 0.2}),
    "bco_pair": ({"loss_type": "bco_pair"}, {"use": "bco_pair"}),
    "sppo": ({"loss_type": "sppo_hard"}, {"use": "sppo", "beta": 0.1}),
    "aot": ({"loss_type": "aot", "label_smoothing": 0.1}, {"use": "aot", "label_smoothing": 0.1}),
    "aot_unpaired": ({"loss_type": "aot_unpaired"}, {"use": "aot_unpaired"}),
    "apo_zero": ({"loss_type": "apo_zero"}, {"use": "apo_zero"}),
    "apo_down": ({"loss_type": "apo_down"}, {"use": "apo_down"}),
    "discopop": ({"loss_type": "discopop"}, {"use": "discopop", "beta": 0.1}),
    "dpo_norm": ({"loss_type": "sigmoid_norm"}, {"use": "dpo_norm", "beta": 0.1}),
    "ld_dpo": ({"loss_type": "sigmoid", "ld_alpha": 0.4}, {"use": "ld_dpo", "ld_alpha": 0.4}),
    "wpo": ({"loss_type": "sigmoid", "use_weighting": True}, {"use": "wpo"}),
    "js": ({"loss_type": "sigmoid", "f_divergence_type": "js_divergence"}, {"use": "f_dpo", "divergence": "js"}),
    "forward_kl": (
        {"loss_type": "sigmoid", "f_divergence_type": "forward_kl"},
        {"use": "f_dpo", "divergence": "forward_kl"},
    ),
    "alpha": (
        {"loss_type": "sigmoid", "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        {"use": "f_dpo", "divergence": "alpha", "alpha": 0.3},
    ),
    "two": (
        {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]},
        {"use": "mpo", "losses": [{"use": "dpo", "weight": 0.8}, {"use": "bco_pair", "weight": 0.2}]},
    ),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("trl")
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=10, pairs=ROWS))
    write_base_model(folder / "model")
    rows = [json.loads(line) for line in files.pairs.read_text(encoding="utf-8").splitlines()]
    return folder / "model", [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]


def moved(module: Any, size: float = 0.02) -> Any:
    """The same model after some training, as it were."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_trls(start: tuple[Path, list[dict[str, str]]], tmp_path: Path, name: str) -> None:
    theirs, ours = CASES[name]
    loaded = load_model(start[0], dtype=torch.float32, device=torch.device("cpu"))
    policy, reference = moved(copy.deepcopy(loaded.module)), loaded.module
    settings = trl.DPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=ROWS,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        beta=0.1,
        **theirs,
    )
    trainer = trl.DPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        args=settings,
        train_dataset=datasets.Dataset.from_list(start[1]),
        processing_class=loaded.tokenizer,
    )
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    trees = [tree_of(row) for row in trainer.train_dataset]
    compare(create(ours), trees, policy, reference, expected, trainer.model)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.4, 0.7)])
@pytest.mark.parametrize("shift", [0.02, -0.05])
def test_kto_is_trls(
    start: tuple[Path, list[dict[str, str]]], tmp_path: Path, weights: tuple[float, float], shift: float
) -> None:
    """On TRL's own mismatched answers; with one shift the reference point is positive, with the other it is clamped."""
    loaded = load_model(start[0], dtype=torch.float32, device=torch.device("cpu"))
    policy, reference = moved(copy.deepcopy(loaded.module), shift), loaded.module
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen" if index % 3 else "rejected"], "label": bool(index % 3)}
        for index, row in enumerate(start[1])
    ]
    settings = trl.KTOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=ROWS,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    trainer = trl.KTOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
    )
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()
    assert (trainer._metrics["eval"]["kl"][-1] > 0) == (shift > 0), "one shift is to be clamped, the other not"
    trees = [judged_tree(batch, row) for row in range(ROWS)]
    objective = create({"use": "kto", "desirable_weight": weights[0], "undesirable_weight": weights[1]})
    compare(objective, trees, policy, reference, expected, trainer.model)


@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_reward_is_trls(start: tuple[Path, list[dict[str, str]]], tmp_path: Path, centering: float) -> None:
    loaded = load_model(start[0], dtype=torch.float32, device=torch.device("cpu"), scores=True)
    policy = moved(loaded.module)
    policy.config.pad_token_id = loaded.tokenizer.pad_token_id
    settings = trl.RewardConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=ROWS,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        center_rewards_coefficient=centering or None,
        disable_dropout=True,
    )
    trainer = trl.RewardTrainer(
        model=copy.deepcopy(policy),
        args=settings,
        train_dataset=datasets.Dataset.from_list(start[1]),
        processing_class=loaded.tokenizer,
    )
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()
    trees = []
    for chosen, rejected in zip(*halves(batch), strict=True):
        same = next(i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
        prompt = np.asarray(chosen[:same], dtype=np.int32)
        trees.append(Tree(prompt, (completion(chosen[same:]), completion(rejected[same:])), ((0, 1),)))
    compare(create({"use": "reward", "centering": centering}), trees, policy, None, expected, trainer.model)


def halves(batch: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Unpadded sequences, chosen then rejected, as TRL stacks them."""
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def judged_tree(batch: Any, row: int) -> Tree:
    """One of TRL's judged answers with the mismatched answer that TRL gave its prompt."""

    def part(prefix: str, *, answer: bool) -> list[int]:
        mask = batch[f"{prefix}completion_mask"][row].bool()
        kept = mask if answer else batch[f"{prefix}attention_mask"][row].bool() & ~mask
        return [int(token) for token in batch[f"{prefix}input_ids"][row][kept]]

    own = completion(part("", answer=True), bool(batch["label"][row]))
    prompt = np.asarray(part("", answer=False), dtype=np.int32)
    return Tree(prompt, (own, completion(part("KL_", answer=True))))


def compare(
    objective: Objective,
    trees: list[Tree],
    policy: Any,
    reference: Any,
    expected: torch.Tensor,
    theirs: nn.Module,
) -> None:
    """Our loss and gradient over two micro-batches against those of a model that has run backward."""
    model = LanguageModel(policy.requires_grad_(True))
    batches = [collate(part) for part in (trees[:2], trees[2:])]
    if reference is not None:
        annotate = ReferenceLogprobs(FullModel(LanguageModel(reference)), None)
        batches = [annotate(batch) for batch in batches]
    totals = Totals.of(batches)
    loss = torch.zeros(())
    for part in foresee(FullModel(model), objective, batches, {}):
        share = objective(model.outputs(part, squares=objective.wants_squares), part, totals).loss
        share.backward()
        loss += share.detach()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    wanted = dict(theirs.named_parameters())
    for key, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key].grad, rtol=1e-3, atol=2e-5, msg=key)


def completion(ids: list[int], label: bool | None = None) -> Completion:
    return Completion(np.asarray(ids, dtype=np.int32), np.ones(len(ids), dtype=bool), label)


def tree_of(row: dict[str, Any]) -> Tree:
    """The tokens that TRL trains on, whatever it made of the text."""
    prompt = np.asarray(row["prompt_ids"], dtype=np.int32)
    return Tree(prompt, (completion(row["chosen_ids"]), completion(row["rejected_ids"])), ((0, 1),))
