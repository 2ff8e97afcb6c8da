"""Each loss against an independent float64 reference, and against values derived by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.objectives import reference
from tests.objectives.trees import outputs, random_columns, whole_and_parts
from truing.core.batch import Batch, Totals
from truing.core.errors import RecipeError
from truing.core.reduce import average
from truing.objectives.apo_down import APODown
from truing.objectives.apo_zero import APOZero
from truing.objectives.base import Objective
from truing.objectives.bco_pair import BCOPair
from truing.objectives.cdpo import CDPO
from truing.objectives.cpo import CPO
from truing.objectives.discopop import DiscoPOP
from truing.objectives.dpo import DPO
from truing.objectives.dpo_norm import NormalisedDPO
from truing.objectives.exo import EXO
from truing.objectives.f_dpo import FDPO
from truing.objectives.hinge import Hinge
from truing.objectives.ipo import IPO
from truing.objectives.ld_dpo import LDDPO
from truing.objectives.mpo import MPO
from truing.objectives.nca import NCA
from truing.objectives.orpo import ORPO
from truing.objectives.registry import create
from truing.objectives.robust import RobustDPO
from truing.objectives.sft import SFT
from truing.objectives.simpo import SimPO
from truing.objectives.sppo import SPPO
from truing.objectives.wpo import WPO

CASES: list[tuple[Objective, Callable[[reference.SUM], float]]] = [
    (DPO(), lambda p: reference.dpo(p, 0.1)),
    (DPO(beta=0.7, label_smoothing=0.2), lambda p: reference.dpo(p, 0.7, 0.2)),
    (DPO(beta=0.3, sft_weight=0.5), lambda p: reference.dpo(p, 0.3, sft_weight=0.5)),
    (DPO(reference_free=True), lambda p: reference.dpo((p[0], p[1], [], []), 0.1)),
    (IPO(beta=0.2), lambda p: reference.ipo(p, 0.2)),
    (SimPO(beta=2.5, gamma_beta_ratio=0.3), lambda p: reference.simpo(p, 2.5, 0.3)),
    (ORPO(beta=0.25), lambda p: reference.orpo(p, 0.25)),
    (CDPO(beta=0.3), lambda p: reference.dpo(p, 0.3, 0.1)),
    (RobustDPO(beta=0.3, label_smoothing=0.2), lambda p: reference.robust(p, 0.3, 0.2)),
    (Hinge(beta=0.4), lambda p: reference.hinge(p, 0.4)),
    (CPO(beta=0.2, sft_weight=0.7), lambda p: reference.cpo(p, 0.2, 0.7)),
    (NormalisedDPO(beta=2.0), lambda p: reference.dpo_norm(p, 2.0)),
    (APOZero(beta=0.3), lambda p: reference.apo_zero(p, 0.3)),
    (APODown(beta=0.3), lambda p: reference.apo_down(p, 0.3)),
    (NCA(beta=0.3), lambda p: reference.nca(p, 0.3)),
    (EXO(beta=0.3, label_smoothing=0.01), lambda p: reference.exo(p, 0.3, 0.01)),
    (SPPO(beta=0.5), lambda p: reference.sppo(p, 0.5)),
    (BCOPair(beta=0.3), lambda p: reference.bco_pair(p, 0.3)),
    (DiscoPOP(beta=0.2, tau=0.1), lambda p: reference.discopop(p, 0.2, 0.1)),
    (FDPO(beta=0.3, divergence="reverse_kl"), lambda p: reference.f_dpo(p, 0.3, math.log)),
    (FDPO(beta=0.3, divergence="forward_kl"), lambda p: reference.f_dpo(p, 0.3, lambda u: -1 / u)),
    (FDPO(beta=0.3, divergence="js"), lambda p: reference.f_dpo(p, 0.3, lambda u: math.log(2 * u / (1 + u)))),
    (FDPO(beta=0.3, divergence="alpha", alpha=0.4), lambda p: reference.f_dpo(p, 0.3, lambda u: (1 - u**-0.4) / 0.4)),
    (LDDPO(beta=0.3, ld_alpha=0.3), lambda p: reference.ld_dpo(p, 0.3, 0.3)),
    (WPO(beta=0.3, alignment="none"), lambda p: reference.wpo(p, 0.3)),
    (
        WPO(beta=0.3, alignment="none", sft_weight=0.5),
        lambda p: reference.wpo(p, 0.3) - 0.5 * math.fsum(p[0]) / len(p[0]),
    ),
    (MPO(), lambda p: 0.8 * reference.dpo(p, 0.1, sft_weight=1.25) + 0.2 * reference.bco_pair(p, 0.1)),
]


def pairs_of(batch: Batch, policy: torch.Tensor, ref: torch.Tensor) -> list[reference.SUM]:
    """Split token log-probs by completion, then group them as the batch's pairs say."""
    of = [
        [[float(x) for x in column[batch.target_completion == c]] for c in range(batch.num_completions)]
        for column in (policy.detach().double(), ref.double())
    ]
    return [(of[0][good], of[0][bad], of[1][good], of[1][bad]) for good, bad in batch.pairs.tolist()]


@pytest.mark.parametrize(
    ("objective", "expected"), CASES, ids=lambda case: repr(case) if isinstance(case, Objective) else ""
)
def test_loss_equals_the_float64_reference(objective: Objective, expected: Callable[[reference.SUM], float]) -> None:
    batch, _ = whole_and_parts(11)
    policy, ref = random_columns(batch, np.random.default_rng(12))
    share = objective(outputs(policy), batch.with_columns(ref_logprobs=ref), Totals.of([batch]))
    pairs = pairs_of(batch, policy, ref)
    by_hand = math.fsum(expected(pair) for pair in pairs) / len(pairs)
    assert share.loss.item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "start"),
    [
        (DPO(), math.log(2)),
        (DPO(label_smoothing=0.3), math.log(2)),
        (IPO(beta=0.1), 25.0),
        (CDPO(), math.log(2)),
        (RobustDPO(), math.log(2)),
        (Hinge(), 1.0),
        (NormalisedDPO(), math.log(2)),
        (APOZero(), 1.0),
        (APODown(), 1.0),
        (NCA(), 2 * math.log(2)),
        (EXO(label_smoothing=0.1), 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)),
        (SPPO(beta=0.1), 50.0),
        (BCOPair(), 2 * math.log(2)),
        (DiscoPOP(), (math.log(2) + 1) / 2),
        (FDPO(), math.log(2)),
        (LDDPO(), math.log(2)),
    ],
)
def test_the_first_loss_is_known_when_policy_and_reference_are_one(objective: Objective, start: float) -> None:
    batch, _ = whole_and_parts(13)
    policy, _ = random_columns(batch, np.random.default_rng(14))
    share = objective(outputs(policy), batch.with_columns(ref_logprobs=policy.detach()), Totals.of([batch]))
    assert share.loss.item() == pytest.approx(start, abs=1e-6)
    assert objective.start_complaint(share.loss.item(), {}, 50) is None
    complaint = objective.start_complaint(share.loss.item() + 0.01 * start, {}, 50)
    assert complaint is not None
    assert "reference" in complaint
    metrics = average([share.metrics])
    assert metrics["rewards/margins"] == 0.0
    assert metrics["rewards/accuracies"] == 0.5, "a tie counts half"


def test_rewards_are_beta_times_the_log_ratios() -> None:
    batch, _ = whole_and_parts(15)
    policy, ref = random_columns(batch, np.random.default_rng(16))
    share = DPO(beta=0.4)(outputs(policy), batch.with_columns(ref_logprobs=ref), Totals.of([batch]))
    pairs = pairs_of(batch, policy, ref)
    metrics = average([share.metrics])
    chosen = [0.4 * (math.fsum(p[0]) - math.fsum(p[2])) for p in pairs]
    rejected = [0.4 * (math.fsum(p[1]) - math.fsum(p[3])) for p in pairs]
    assert metrics["rewards/chosen"] == pytest.approx(np.mean(chosen), abs=1e-6)
    assert metrics["rewards/rejected"] == pytest.approx(np.mean(rejected), abs=1e-6)
    wins = [c > r for c, r in zip(chosen, rejected, strict=True)]
    assert metrics["rewards/accuracies"] == pytest.approx(np.mean(wins))
    assert metrics["logps/chosen"] == pytest.approx(np.mean([math.fsum(p[0]) for p in pairs]), abs=1e-5)


def test_sft_is_the_mean_over_all_supervised_tokens_of_the_step() -> None:
    batch, parts = whole_and_parts(17, completions=1)
    policy, _ = random_columns(batch, np.random.default_rng(18))
    share = SFT()(outputs(policy), batch, Totals.of([batch]))
    assert share.loss.item() == pytest.approx(-policy.double().mean().item(), abs=1e-6)
    sizes = {part.num_targets for part in parts}
    assert len(sizes) > 1, "with equal parts a mean of means would pass too"


def test_sft_refuses_a_start_worse_than_guessing_twice() -> None:
    assert SFT().start_complaint(math.log(50) * 1.5, {}, 50) is None
    complaint = SFT().start_complaint(math.log(50) * 2.5, {}, 50)
    assert complaint is not None
    assert "guessing" in complaint


def test_a_sum_tells_its_terms_apart_by_number() -> None:
    twice = create({"use": "mpo", "losses": [{"use": "ipo", "beta": 0.1}, {"use": "ipo", "beta": 0.5, "weight": 2.0}]})
    batch, _ = whole_and_parts(21)
    policy, _ = random_columns(batch, np.random.default_rng(22))
    share = twice(outputs(policy), batch.with_columns(ref_logprobs=policy.detach()), Totals.of([batch]))
    metrics = average([share.metrics])
    assert metrics["loss/ipo"] == pytest.approx(25.0)
    assert metrics["loss/ipo_2"] == pytest.approx(1.0)
    assert share.loss.item() == pytest.approx(27.0)
    assert twice.start_complaint(27.0, metrics, 50) is None


@pytest.mark.parametrize("use", ["reward", "kto", "sft", "aot", "mpo"])
def test_a_sum_refuses_what_it_cannot_add(use: str) -> None:
    with pytest.raises(RecipeError, match=f"'{use}' cannot be a term"):
        create({"use": "mpo", "losses": [{"use": use}]})
