"""What a rollout makes of scores before an objective learns from them; prompts, engine and reward are made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from truing.core.batch import Batch, collate
from truing.core.errors import NothingToTrain
from truing.core.samples import Sampled
from truing.objectives.best_of_n import BestOfN
from truing.objectives.grpo import GRPO
from truing.objectives.online_dpo import OnlineDPO
from truing.objectives.policy_gradient import RolloutObjective
from truing.objectives.rloo import RLOO
from truing.rl.rewards import Answers
from truing.training.rollouts import SILENT_ROLLOUTS, Asking, Crew, RolloutPlan, RolloutSource, Weighed, correlation


class Writer:
    """Writes three completions of each prompt: tokens 10, 11 and 12; only the last ends."""

    def sample(
        self, prompts: Sequence[Sequence[int]], *, count: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[Sampled]]:
        one = np.full(2, -1.0, np.float32)
        return [[Sampled(np.full(2, 10 + i, np.int32), one, i == 2) for i in range(count)] for _ in prompts]

    def figures(self) -> dict[str, float]:
        return {}

    def close(self) -> None: ...


class Scorer:
    """Gives each prompt's completions the same scores."""

    name = "scorer"

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = list(scores)

    def __call__(self, answers: Answers) -> list[float]:
        return self.scores * len(answers.trees)

    def close(self) -> None:
        pass


class Heard:
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def show(self, name: str, parts: Sequence[tuple[str, bool]]) -> None:
        pass

    def begin(self, what: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        pass

    def end(self) -> None:
        pass


def source(objective: RolloutObjective, scores: Sequence[float], steps: int = 1, drift: float = 0.0) -> RolloutSource:
    """`drift`: how far the policy is from the reference, more so in later completions."""

    def annotate(batch: Batch) -> Batch:
        return batch.with_columns(ref_logprobs=batch.column("old_logprobs") - drift * (batch.targets - 10))

    askings = [Asking(np.asarray([n], dtype=np.int32), "", {}) for n in range(2)]
    plan = RolloutPlan(
        examples=2,
        mini_batches=1,
        epochs=1,
        group_size=len(scores),
        max_new_tokens=2,
        normalize_on=0,
        micro_tokens=100,
        seed=1,
        shuffle=False,
    )
    crew = Crew(
        engine=Writer(),
        temperature=1.0,
        rewards=[Weighed(Scorer(scores), 1.0, normalize=False)],
        annotate=annotate,
        logprobs=lambda batch: torch.zeros(batch.num_targets),
        collate=collate,
        size=lambda tree: tree.size,
        decode=lambda tokens: "",
    )
    return RolloutSource(objective, askings, [], plan, crew, steps, Heard())


def written(objective: RolloutObjective, scores: Sequence[float]) -> list[int]:
    """The first token of each completion of the first prompt that is learned from."""
    (step,) = source(objective, scores).steps(0)
    (batch,) = step.batches
    own = batch.completion_tree == 0
    return [
        int(part[0]) for part, mine in zip(batch.targets.split(list(batch.target_counts)), own, strict=True) if mine
    ]


def test_the_choice_of_completions_heeds_the_penalty_and_the_clip() -> None:
    """Scores 1, 3 and 2.5, of which the last alone ends: less 1 for the others, it is the best."""
    assert written(BestOfN(), [1.0, 3.0, 2.5]) == [11]
    assert written(BestOfN(missing_end_penalty=1.0), [1.0, 3.0, 2.5]) == [12]
    assert written(OnlineDPO(), [1.0, 3.0, 2.5]) == [11, 10]
    assert written(OnlineDPO(missing_end_penalty=1.0), [1.0, 3.0, 2.5]) == [12, 10]
    assert written(BestOfN(reward_clip=0.5), [1.0, 3.0, 2.5]) == [10], "all are 0.5; the first of equals"


@pytest.mark.parametrize("objective", [GRPO(), GRPO(kl_estimator="k1"), RLOO(missing_end_penalty=0.0)])
@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_a_reward_that_never_tells_completions_apart_ends_a_run(objective: RolloutObjective, drift: float) -> None:
    """Even where the KL term, in the loss or in the reward, still moves the policy."""
    rollouts = source(objective, [1.0, 1.0, 1.0], steps=50, drift=drift)
    steps = rollouts.steps(0)
    for _ in range(SILENT_ROLLOUTS - 1):
        assert next(steps).silent
    with pytest.raises(NothingToTrain, match=f"{SILENT_ROLLOUTS} rollouts in a row taught nothing"):
        next(steps)
    (warning,) = rollouts.reporter.warnings  # type: ignore[attr-defined]
    assert "every completion scored the same" in warning


def test_a_correlation_is_that_of_its_definition_and_of_constants_or_few_rows_there_is_none() -> None:
    lengths = np.arange(10.0)
    rewards = np.array([0.0, 2, 1, 3, 5, 4, 6, 8, 7, 9])
    covariance = ((lengths - 4.5) * (rewards - 4.5)).mean()
    assert correlation(rewards, lengths) == pytest.approx(covariance / (lengths.std() * rewards.std()))
    assert correlation(-lengths, lengths) == pytest.approx(-1.0)
    assert correlation(np.ones(10), lengths) is None
    assert correlation(rewards[:7], lengths[:7]) is None
