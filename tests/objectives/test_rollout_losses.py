"""Methods that learn from what the policy wrote: PPO, GRPO, RLOO, REINFORCE, online DPO and best of n."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.objectives import reference
from tests.objectives import rollout_reference as oracle
from tests.objectives.rollout_reference import Learned, Written
from tests.objectives.rollouts import (
    batch_of,
    by_number,
    numbers_of,
    prepared,
    random_cut,
    random_rollout,
    step_of,
    unmoved,
)
from truing.core.batch import Outputs, Totals
from truing.core.errors import RecipeError
from truing.objectives.best_of_n import BestOfN
from truing.objectives.grpo import GRPO
from truing.objectives.online_dpo import OnlineDPO
from truing.objectives.policy_gradient import (
    KL,
    LARGEST_LOG_RATIO,
    PolicyGradient,
    RolloutObjective,
    generalised_advantages,
    group_means,
    whitened,
)
from truing.objectives.ppo import PPO, explained_variance
from truing.objectives.registry import create
from truing.objectives.reinforce import Reinforce
from truing.objectives.rloo import RLOO

CASES: list[PolicyGradient] = [
    PPO(),
    PPO(gamma=0.9, lam=0.5, whiten_rewards=True, kl_coef=0.2, clip_range=0.1, clip_range_high=0.3),
    PPO(kl_estimator="k2", entropy_coef=0.02, whiten_advantages=False, missing_end_penalty=0.7, value_coef=0.5),
    PPO(kl_estimator="k3", reward_clip=0.8, lam=1.0, clip_range_value=0.05),
    *(
        GRPO(scale=scale, average=average, longest=9)
        for scale in ("group", "rollout", "none")
        for average in ("completion", "token", "constant")
    ),
    GRPO(clip_range_high=0.28, kl_coef=0.0, average="token"),
    GRPO(skip_unfinished=True, kl_coef=0.3),
    GRPO(skip_unfinished=True, average="token", kl_estimator="k2", missing_end_penalty=1.0, reward_clip=1.0),
    GRPO(kl_estimator="k1", kl_coef=0.3),
    RLOO(),
    RLOO(kl_coef=0.4, clip_range=0.1, clip_range_high=0.3, reward_clip=1.0, missing_end_penalty=0.0),
    RLOO(kl_estimator="k2"),
    RLOO(kl_estimator="k3"),
    Reinforce(),
    Reinforce(whiten_advantages=True, kl_coef=0.3),
    Reinforce(kl_estimator="k3", missing_end_penalty=0.2),
]


def name_of(objective: RolloutObjective) -> str:
    changed = objective.model_dump(exclude_defaults=True)
    return "-".join([objective.name, *(f"{key}={value}" for key, value in changed.items())])


every_case = pytest.mark.parametrize("objective", CASES, ids=name_of)
every_method = pytest.mark.parametrize("objective", [PPO(), GRPO(), RLOO(), Reinforce()], ids=name_of)

# Four prompts of three completions each; the first two micro-batches are one step, the others another.
MICROS = [[[0, 1, 2]], [[3, 4], [5]], [[6, 7, 8], [9]], [[11, 10]]]
STEPS = [slice(0, 2), slice(2, 4)]


def differences(loss: Callable[[Sequence[Written]], float], step: Sequence[Written], name: str) -> list[list[float]]:
    """The gradient of a float64 loss by each number called `name`, by central differences."""
    h = 1e-6
    found = []
    for place, one in enumerate(step):
        row = []
        for t in range(len(one.old)):
            ends = []
            for sign in (1, -1):
                moved = getattr(one, name).copy()
                moved[t] += sign * h
                ends.append(loss([*step[:place], replace(one, **{name: moved}), *step[place + 1 :]]))
            row.append((ends[0] - ends[1]) / (2 * h))
        found.append(row)
    return found


def part_of(learned: Learned, numbers: Sequence[int]) -> Learned:
    return Learned([learned.advantages[i] for i in numbers], [learned.returns[i] for i in numbers if learned.returns])


@every_case
@pytest.mark.parametrize("seed", [1, 2])
def test_loss_gradient_and_figures_equal_the_float64_reference(objective: PolicyGradient, seed: int) -> None:
    """At log-probs that have moved, where clips decide above and below, for both steps of one rollout."""
    o: dict[str, Any] = objective.model_dump()
    advantages_of, loss_of = oracle.METHODS[objective.name]
    rollout = random_rollout(np.random.default_rng(seed))
    batches, told = prepared(objective, [batch_of(rollout, micro) for micro in MICROS])
    learned = advantages_of(rollout, o)
    found = by_number(batches, "advantages")
    for number, row in enumerate(learned.advantages):
        assert found[number].tolist() == pytest.approx(row, rel=1e-5, abs=1e-6)
    expected = oracle.figures(rollout, o)
    if objective.criticised:
        expected["val/explained_variance"] = oracle.explained_variance(rollout, learned)
        expected["val/mean"] = float(np.mean(np.concatenate([one.values for one in rollout])))
    assert expected == pytest.approx({name: told.metrics[name] for name in expected}, rel=1e-5, abs=1e-6)

    sides = set()
    for step in STEPS:
        numbers = [i for batch in batches[step] for i in numbers_of(batch)]
        written, own = [rollout[i] for i in numbers], part_of(learned, numbers)
        loss, metrics, gradients = step_of(objective, batches[step])
        assert loss == pytest.approx(loss_of(written, own, o), rel=1e-6, abs=1e-6)
        for name in ("policy", "critic", "entropy"):

            def moved(step: Sequence[Written], own: Learned = own) -> float:
                return loss_of(step, own, o)

            for number, row in zip(numbers, differences(moved, written, name), strict=True):
                assert gradients[number][name].tolist() == pytest.approx(row, rel=1e-5, abs=2e-7), name
        figures = oracle.token_metrics(written, own, o, whole=objective.name in ("rloo", "reinforce"))
        if objective.name == "reinforce":
            figures = {"val/ratio": oracle.token_metrics(written, own, o, whole=False)["val/ratio"]}
        if objective.criticised:
            figures |= oracle.value_metrics(written, own, o)
            assert metrics["val/clipfrac"] > 0, "the test needs values that are clipped"
        assert figures == pytest.approx({name: metrics[name] for name in figures}, rel=1e-5, abs=1e-6)
        sides |= sides_of(objective, written, own, o)
    if objective.name != "reinforce":
        assert {-1, 1} <= sides, "the test needs clips that decide on either side"


def sides_of(objective: PolicyGradient, step: Sequence[Written], learned: Learned, o: dict[str, Any]) -> set[int]:
    """Where the clip decides."""
    if objective.whole:
        ratios = [math.exp(math.fsum(one.policy - one.old)) for one in step]
        return {oracle.acts(r, row[0], o) for r, row in zip(ratios, learned.advantages, strict=True)}
    return {
        oracle.acts(math.exp(p - q), a, o)
        for one, row in zip(step, learned.advantages, strict=True)
        for p, q, a in zip(one.policy, one.old, row, strict=True)
    }


def test_generalised_advantages_of_three_tokens_worked_out_by_hand() -> None:
    """With γ = 1, λ = ½, V = (1, 2, 4) and R = (0, 0, 5): δ = (1, 2, 1) from the end V = 0, A = (2.25, 2.5, 1)."""
    one = random_rollout(np.random.default_rng(0), prompts=1, group=1)[0]
    one = replace(one, **{name: np.full(3, -1.0) for name in ("policy", "old", "ref", "critic", "values", "entropy")})
    batch = batch_of([one, one], [[0], [1]])
    rewards, values = torch.tensor([0.0, 0, 5] * 2), torch.tensor([1.0, 2, 4] * 2)
    found = generalised_advantages(rewards, values, batch, gamma=1.0, lam=0.5)
    assert found.tolist() == [2.25, 2.5, 1.0] * 2


def test_with_lambda_one_the_return_of_a_token_is_all_that_follows() -> None:
    objective = PPO(lam=1.0, gamma=1.0, kl_coef=0.3)
    rollout = random_rollout(np.random.default_rng(3))
    batches, _ = prepared(objective, [batch_of(rollout, micro) for micro in MICROS])
    for number, found in by_number(batches, "returns").items():
        one = rollout[number]
        rewards = -0.3 * (one.old - one.ref)
        rewards[-1] += one.score - (not one.ended)
        assert found.tolist() == pytest.approx(np.cumsum(rewards[::-1])[::-1].tolist(), rel=1e-5, abs=1e-5)


@every_case
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_trees_and_micro_batches_change_neither_advantages_nor_loss_nor_gradient(
    objective: PolicyGradient, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rollout = random_rollout(rng, prompts=int(rng.integers(1, 5)), group=int(rng.integers(2, 5)))
    whole, told = prepared(objective, [batch_of(rollout, [[i] for i in range(len(rollout))])])
    parts, split = prepared(objective, [batch_of(rollout, micro) for micro in random_cut(rng, rollout)])
    assert split.metrics == pytest.approx(told.metrics, rel=1e-5, abs=1e-5)
    assert split.memory == pytest.approx(told.memory)
    assert split.silent == told.silent
    for column in ("advantages", "returns") if objective.criticised else ("advantages",):
        before, after = by_number(whole, column), by_number(parts, column)
        assert before.keys() == after.keys()
        for number, expected in before.items():
            torch.testing.assert_close(after[number], expected, rtol=1e-5, atol=1e-5)
    loss, metrics, gradients = step_of(objective, whole)
    split_loss, split_metrics, split_gradients = step_of(objective, parts)
    assert split_loss == pytest.approx(loss, rel=1e-5, abs=1e-5)
    assert split_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-5)
    for number, own in gradients.items():
        for name, expected in own.items():
            torch.testing.assert_close(split_gradients[number][name], expected, rtol=1e-5, atol=1e-5)


def test_policy_and_critic_asked_one_after_the_other_make_the_same_step() -> None:
    objective = PPO(entropy_coef=0.01)
    rollout = random_rollout(np.random.default_rng(4))
    batches, _ = prepared(objective, [batch_of(rollout, micro) for micro in MICROS])
    loss, metrics, gradients = step_of(objective, batches)
    apart, own, others = step_of(objective, batches, apart=True)
    assert apart == pytest.approx(loss, rel=1e-6)
    assert own == pytest.approx(metrics)
    for number, expected in gradients.items():
        for name, gradient in expected.items():
            assert torch.equal(others[number][name], gradient)


def test_the_critic_alone_learns_in_the_first_steps() -> None:
    objective = PPO(value_warmup=2)
    assert [objective.trained(step) for step in range(3)] == [("value",), ("value",), ("policy", "value")]
    rollout = random_rollout(np.random.default_rng(5))
    (batch,), _ = prepared(objective, [batch_of(rollout, [[i] for i in range(12)])])
    share = objective(Outputs(torch.zeros(0), values=batch.column("critic")), batch, Totals.of([batch]))
    learned = oracle.ppo(rollout, objective.model_dump())
    expected = oracle.value_metrics(rollout, learned, objective.model_dump())["loss/value"]
    assert share.loss.item() == pytest.approx(0.1 * expected, rel=1e-6)
    assert set(share.metrics) == {"loss/value", "val/clipfrac"}


@every_method
def test_before_the_first_update_ratios_are_one_and_no_clip_acts(objective: PolicyGradient) -> None:
    """And the gradient is that of the plain policy gradient, −A over the tokens or completions of the step."""
    rollout = unmoved(random_rollout(np.random.default_rng(6)))
    batches, told = prepared(objective, [batch_of(rollout, micro) for micro in MICROS])
    _, metrics, gradients = step_of(objective, batches)
    assert metrics["val/ratio"] == 1.0
    assert metrics.get("policy/clipfrac", 0.0) == 0.0
    assert metrics.get("policy/approxkl", 0.0) == 0.0
    assert told.metrics["objective/kl"] == 0.0
    assert objective.start_complaint(0.0, {**told.metrics, **metrics}, 50) is None
    tokens = sum(len(one.old) for one in rollout)
    for number, advantages in by_number(batches, "advantages").items():
        counts = {"ppo": tokens, "grpo": 12 * len(advantages), "rloo": 12, "reinforce": 12}
        torch.testing.assert_close(gradients[number]["policy"], -advantages / counts[objective.name])


@every_method
def test_a_policy_that_did_not_write_its_samples_is_noticed_before_the_first_update(objective: PolicyGradient) -> None:
    rollout = unmoved(random_rollout(np.random.default_rng(7)))

    def complaint(changed: Sequence[Written]) -> str | None:
        batches, told = prepared(objective, [batch_of(changed, micro) for micro in MICROS])
        _, metrics, _ = step_of(objective, batches)
        return objective.start_complaint(0.0, {"completions/length": 4.0, **told.metrics, **metrics}, 50)

    assert complaint(rollout) is None
    assert complaint([replace(one, policy=one.old + 1e-5) for one in rollout]) is None, "other kernels round otherwise"
    assert "the first ratio is 1." in str(complaint([replace(one, policy=one.old + 0.03) for one in rollout]))
    assert "the first KL is" in str(complaint([replace(one, ref=one.old - 0.03) for one in rollout]))
    if objective.name != "reinforce":
        metrics = {"val/ratio": 1.0, "policy/clipfrac": 0.01, "objective/kl": 0.0}
        assert "the clip acts" in str(objective.start_complaint(0.0, metrics, 50))


@pytest.mark.parametrize(
    "objective",
    [
        *(GRPO(scale=scale, kl_estimator=kl) for scale in ("group", "rollout", "none") for kl in ("k1", "k3")),
        GRPO(scale="group", missing_end_penalty=0.0, reward_clip=1.0),
        RLOO(missing_end_penalty=0.0),
        Reinforce(missing_end_penalty=0.0),
        Reinforce(missing_end_penalty=0.0, whiten_advantages=True),
        PPO(missing_end_penalty=0.0, lam=1.0),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("score", [0.0, 0.1, -3.3, 1e4])
def test_equal_scores_teach_nothing_and_are_never_nan(objective: PolicyGradient, score: float) -> None:
    rollout = [
        replace(one, score=float(np.float32(score)), values=np.zeros(len(one.old)))
        for one in unmoved(random_rollout(np.random.default_rng(8)))
    ]
    batches, told = prepared(objective, [batch_of(rollout, micro) for micro in MICROS])
    assert told.silent
    for advantages in by_number(batches, "advantages").values():
        assert (advantages == 0).all()
    _, _, gradients = step_of(objective, batches)
    for own in gradients.values():
        assert (own["policy"] == 0).all()
    if objective.least_group > 1:
        assert told.metrics["rewards/equal_groups"] == 1.0
    other = [replace(rollout[0], score=score + 1), *rollout[1:]]
    assert not prepared(objective, [batch_of(other, micro) for micro in MICROS])[1].silent or objective.reward_clip


def test_equal_scores_stay_silent_where_only_the_kl_term_of_the_loss_is_left() -> None:
    """A reward that never tells completions apart is to be noticed, however far the policy has moved."""
    rollout = [replace(one, score=0.0) for one in random_rollout(np.random.default_rng(9))]
    batches, told = prepared(GRPO(kl_coef=0.04), [batch_of(rollout, micro) for micro in MICROS])
    assert told.metrics["objective/kl"] != 0
    assert told.silent
    _, _, gradients = step_of(GRPO(kl_coef=0.04), batches)
    assert any((own["policy"] != 0).any() for own in gradients.values())


@pytest.mark.parametrize("scale", ["group", "rollout", "none"])
def test_one_completion_alone_has_no_advantage(scale: str) -> None:
    rollout = random_rollout(np.random.default_rng(10), prompts=1, group=1)
    for objective in (create({"use": "grpo", "scale": scale}), RLOO(), Reinforce(), Reinforce(whiten_advantages=True)):
        assert isinstance(objective, PolicyGradient)
        (batch,), told = prepared(objective, [batch_of(rollout, [[0]])])
        assert (batch.column("advantages") == 0).all()
        assert told.silent


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 30))
def test_whitened_equal_numbers_are_zero_or_stay_what_they_are(number: float, count: int) -> None:
    parts = [torch.full((count,), number), torch.full((3,), number)]
    assert all((part == 0).all() for part in whitened(parts))
    kept = torch.cat(whitened(parts, centred=False))
    torch.testing.assert_close(kept, torch.cat(parts))


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20), st.integers(1, 19))
def test_whitened_numbers_have_mean_zero_and_deviation_one(numbers: list[float], place: int) -> None:
    numbers[0] += 1000  # so that they differ
    parts = [torch.tensor(numbers[:place]), torch.tensor(numbers[place:])]
    whole, kept = torch.cat(whitened(parts)).double(), torch.cat(whitened(parts, centred=False)).double()
    assert float(whole.mean()) == pytest.approx(0, abs=1e-5)
    assert float(whole.std()) == pytest.approx(1, rel=1e-5)
    assert float(kept.mean()) == pytest.approx(np.mean(numbers), rel=1e-4, abs=1e-4)
    assert float(kept.std()) == pytest.approx(1, rel=1e-3)


def test_group_means_are_those_of_numpy() -> None:
    values, groups = torch.tensor([1.0, 4.0, 2.0, 9.0, 5.0]), torch.tensor([7, 3, 7, 3, 0])
    mean, deviation, count = group_means(values, groups)
    assert mean.tolist() == [1.5, 6.5, 1.5, 6.5, 5.0]
    assert deviation.tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(12.5)] * 2 + [0.0])
    assert count.tolist() == [2, 2, 2, 2, 1]


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.zeros(3), returns) == 0.0
    assert explained_variance(torch.randn(3), torch.tensor([1.0, 1.0 + 1e-7, 1.0])) == 0.0, "returns are all the same"
    assert explained_variance(torch.ones(1), torch.ones(1)) == 0.0


def shaped(objective: RolloutObjective, scores: list[float], ended: list[bool]) -> list[float]:
    return objective.shaped(torch.tensor(scores), torch.tensor(ended)).tolist()


def test_an_unfinished_completion_loses_the_penalty_before_scores_are_clipped() -> None:
    objective = PPO(missing_end_penalty=2.0, reward_clip=3.0)
    assert shaped(objective, [1.0, 1.0, 4.0, 4.0, -2.0], [True, False, True, False, False]) == [1, -1, 3, 2, -3]
    assert shaped(PPO(), [9.0, 9.0], [True, False]) == [9, 8]
    assert shaped(GRPO(), [9.0, 9.0], [True, False]) == [9, 9]


@pytest.mark.parametrize("kl", [60.0, 6.0, 5.5, 5.0, 4.5, 4.0, 0.0, -3.0])
@pytest.mark.parametrize("horizon", [10_000.0, 120.0])
def test_the_adaptive_coefficient_moves_by_its_formula(kl: float, horizon: float) -> None:
    """arXiv:1909.08593, section 2.2: β ← β (1 + clip(KL/target − 1, ±0.2) n/horizon)."""
    objective = PPO(kl_target=5.0, kl_horizon=horizon, kl_coef=0.05)
    rollout = [
        replace(one, ref=one.old - kl / len(one.old)) for one in unmoved(random_rollout(np.random.default_rng(11)))
    ]
    batches = [batch_of(rollout, micro) for micro in MICROS]
    for memory, beta in (({}, 0.05), ({KL: 0.3}, 0.3)):
        told = objective.prepare(batches, memory)
        error = max(-0.2, min(0.2, kl / 5.0 - 1))
        assert told.memory[KL] == pytest.approx(beta * (1 + error * 12 / horizon), rel=1e-5)
        assert told.metrics["objective/kl_coef"] == beta
        assert told.metrics["objective/kl"] == pytest.approx(kl, abs=1e-5)
    fixed = PPO(kl_coef=0.05).prepare(batches, {})
    assert fixed.memory[KL] == 0.05


def test_the_coefficient_in_force_is_the_one_that_the_loss_and_the_reward_use() -> None:
    rollout = random_rollout(np.random.default_rng(12))
    batches = [batch_of(rollout, micro) for micro in MICROS]
    for kind in ("k1", "k3"):
        changing = PPO(kl_target=5.0, kl_coef=0.05, kl_estimator=kind)
        fixed = PPO(kl_coef=0.4, kl_estimator=kind)
        filled = [
            [b.with_columns(**own) for b, own in zip(batches, o.prepare(batches, memory).columns, strict=True)]
            for o, memory in ((changing, {KL: 0.4}), (fixed, {}))
        ]
        assert step_of(changing, filled[0])[0] == pytest.approx(step_of(fixed, filled[1])[0], rel=1e-6)


def test_a_rollout_larger_than_the_horizon_does_not_turn_the_coefficients_sign() -> None:
    objective = PPO(kl_target=5.0, kl_horizon=1.0)
    rollout = unmoved(random_rollout(np.random.default_rng(13)))
    told = objective.prepare([batch_of(rollout, micro) for micro in MICROS], {})
    assert told.memory[KL] == pytest.approx(0.05 * 0.8)


def test_a_target_needs_a_coefficient_to_start_from() -> None:
    with pytest.raises(RecipeError, match="kl_target multiplies kl_coef"):
        create({"use": "grpo", "kl_target": 5.0, "kl_coef": 0.0})


def test_training_ends_above_the_kl_budget_and_says_so() -> None:
    objective = PPO(kl_budget=20.0)
    assert objective.over_budget({"objective/kl": 20.0}) is None
    message = "the policy is 20.10 nats a completion from the reference, over kl_budget 20"
    assert objective.over_budget({"objective/kl": 20.1}) == message
    assert PPO().over_budget({"objective/kl": 1e9}) is None


@pytest.mark.parametrize("objective", [PPO(), GRPO(kl_coef=0.0), RLOO(), GRPO(), PPO(kl_estimator="k3")], ids=name_of)
@pytest.mark.parametrize("move", [-300.0, -30.0, 30.0, 300.0])
def test_ratios_beyond_float32_leave_loss_and_gradient_finite(objective: PolicyGradient, move: float) -> None:
    """e^300 overflows; where the clip leaves it out, its gradient must be 0 and not 0 · ∞."""
    rollout = [replace(one, policy=one.old + move) for one in random_rollout(np.random.default_rng(14))]
    batches, _ = prepared(objective, [batch_of(rollout, micro) for micro in MICROS])
    loss, metrics, gradients = step_of(objective, batches)
    assert math.isfinite(loss)
    assert all(math.isfinite(value) for value in metrics.values())
    advantages = by_number(batches, "advantages")
    for number, own in gradients.items():
        assert torch.isfinite(own["policy"]).all()
        left_out = advantages[number] > 0 if move > 0 else advantages[number] < 0
        if objective.kl_estimator == "k1" or not objective.kl_coef:
            assert (own["policy"][left_out] == 0).all()
    assert metrics["val/ratio"] <= math.exp(LARGEST_LOG_RATIO) * 1.0001


def test_a_group_of_two_has_opposite_advantages_in_rloo_and_grpo() -> None:
    """Scores 1 and 3: RLOO ∓2; GRPO ∓1/(√2 + 1e-4)."""
    pair = [
        replace(one, score=score, ended=True)
        for one, score in zip(
            unmoved(random_rollout(np.random.default_rng(15), prompts=1, group=2)), (1.0, 3.0), strict=True
        )
    ]
    for objective, size in ((RLOO(), 2.0), (GRPO(), 1 / (math.sqrt(2) + 1e-4)), (GRPO(scale="none"), 1.0)):
        found = by_number(prepared(objective, [batch_of(pair, [[0, 1]])])[0], "advantages")
        assert float(found[0][0]) == pytest.approx(-size, rel=1e-6)
        assert float(found[1][0]) == pytest.approx(size, rel=1e-6)


def test_constant_averaging_takes_the_longest_length_from_the_recipe() -> None:
    assert GRPO(average="constant").for_rollouts(128).longest == 128
    assert GRPO(average="constant", longest=64).for_rollouts(128).longest == 64


@pytest.mark.parametrize(
    ("scores", "keep"),
    [([1.0, 3.0, 2.0], (1, 0)), ([3.0, 1.0], (0, 1)), ([2.0, 5.0, 5.0, 2.0], (1, 0)), ([1.0, 1.0], ())],
)
def test_online_dpo_compares_the_best_with_the_worst_and_leaves_ties_out(
    scores: list[float], keep: tuple[int, ...]
) -> None:
    picked = OnlineDPO().pick(scores)
    assert picked.keep == keep
    assert picked.pairs == (((0, 1),) if keep else ())


def test_best_of_n_keeps_the_best_and_the_first_of_equals() -> None:
    assert BestOfN().pick([1.0, 4.0, 4.0, -2.0]).keep == (1,)
    assert BestOfN().pick([2.0, 2.0]).keep == (0,)
    assert BestOfN().pick([2.0, 1.0]).pairs == ()


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_online_dpo_equals_the_float64_reference(beta: float) -> None:
    rollout = random_rollout(np.random.default_rng(16), prompts=5, group=2)
    objective = OnlineDPO(beta=beta)
    batches, told = prepared(
        objective,
        [batch_of(rollout, micro, ((0, 1),)) for micro in ([[0, 1], [2, 3]], [[5, 4]], [[7, 6], [8, 9]])],
    )

    def loss_of(step: Sequence[Written]) -> float:
        losses = []
        for good, bad in ((0, 1), (2, 3), (5, 4), (7, 6), (8, 9)):
            parts = (step[good].policy, step[bad].policy, step[good].ref, step[bad].ref)
            losses.append(reference.dpo(tuple(list(part) for part in parts), beta))  # type: ignore[arg-type]
        return math.fsum(losses) / len(losses)

    loss, metrics, gradients = step_of(objective, batches)
    assert loss == pytest.approx(loss_of(rollout), abs=1e-6)
    for number, row in enumerate(differences(loss_of, rollout, "policy")):
        assert gradients[number]["policy"].tolist() == pytest.approx(row, rel=1e-5, abs=1e-6)
    ratios = [beta * math.fsum(one.policy - one.ref) for one in rollout]
    margins = [ratios[good] - ratios[bad] for good, bad in ((0, 1), (2, 3), (5, 4), (7, 6), (8, 9))]
    assert metrics["rewards/margins"] == pytest.approx(np.mean(margins), abs=1e-5)
    assert metrics["rewards/accuracies"] == np.mean([m > 0 for m in margins])
    assert told.metrics["objective/kl"] == pytest.approx(np.mean([oracle.kl(one) for one in rollout]), abs=1e-5)


def test_online_dpo_starts_at_ln_2_and_complains_of_another_reference() -> None:
    rollout = unmoved(random_rollout(np.random.default_rng(17), prompts=3, group=2))
    objective = OnlineDPO()
    micro = [[0, 1], [2, 3], [4, 5]]
    loss, metrics, _ = step_of(objective, [batch_of(rollout, micro, ((0, 1),))])
    assert loss == pytest.approx(math.log(2), abs=1e-7)
    assert (metrics["rewards/margins"], metrics["rewards/accuracies"]) == (0.0, 0.5)
    assert objective.start_complaint(loss, metrics, 50) is None
    moved = [replace(one, ref=one.ref - 0.3 * (i % 2)) for i, one in enumerate(rollout)]
    loss, metrics, _ = step_of(objective, [batch_of(moved, micro, ((0, 1),))])
    assert "the first loss is" in str(objective.start_complaint(loss, metrics, 50))


def test_best_of_n_is_the_mean_negative_log_prob_of_what_was_picked() -> None:
    rollout = random_rollout(np.random.default_rng(18), prompts=4, group=1)
    objective = BestOfN()
    batches, told = prepared(objective, [batch_of(rollout, [[0], [1]]), batch_of(rollout, [[3], [2]])])
    loss, metrics, gradients = step_of(objective, batches)
    numbers = [x for one in rollout for x in one.policy]
    assert loss == pytest.approx(-math.fsum(numbers) / len(numbers), abs=1e-6)
    assert metrics["loss/policy"] == pytest.approx(loss, abs=1e-6)
    assert told.metrics["objective/entropy"] == pytest.approx(-math.fsum(x for one in rollout for x in one.old) / 4)
    for own in gradients.values():
        torch.testing.assert_close(own["policy"], torch.full_like(own["policy"], -1 / len(numbers)))
