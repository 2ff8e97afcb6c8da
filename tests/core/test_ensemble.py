"""The score of an ensemble: derived by hand, then the laws it keeps."""

from __future__ import annotations

import pytest
import torch

from truing.core.ensemble import ensemble_score
from truing.core.errors import InputError


def random_scores(members: int, count: int = 50) -> torch.Tensor:
    return torch.randn(members, count, generator=torch.Generator().manual_seed(members), dtype=torch.float64)


def test_the_score_is_the_mean_less_deviations_of_the_population() -> None:
    """Of 1, 2 and 6: mean 3, squares of differences 4 + 1 + 9 = 14, deviation √(14/3). Of 5, 5, 5: deviation 0."""
    scores = torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]], dtype=torch.float64)
    found = ensemble_score(scores, 2.0)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([3 - 2 * (14 / 3) ** 0.5, 5.0])


@pytest.mark.parametrize("deviations", [0.0, 1.0, 7.0])
def test_one_member_gives_its_plain_score(deviations: float) -> None:
    scores = random_scores(1)
    assert torch.equal(ensemble_score(scores, deviations), scores[0])


def test_of_two_members_one_deviation_below_the_mean_is_the_lower() -> None:
    scores = random_scores(2)
    torch.testing.assert_close(ensemble_score(scores, 1.0), scores.min(dim=0).values)


def test_members_have_no_order_and_a_common_shift_and_scale_pass_through() -> None:
    scores = random_scores(4)
    expected = ensemble_score(scores, 1.5)
    torch.testing.assert_close(ensemble_score(scores.flip(0), 1.5), expected)
    torch.testing.assert_close(ensemble_score(3 * scores + 2, 1.5), 3 * expected + 2)
    torch.testing.assert_close(ensemble_score(scores, 0.0), scores.mean(dim=0))
    assert (expected <= scores.mean(dim=0)).all()


def test_no_answers_are_no_scores_and_no_members_are_refused() -> None:
    assert ensemble_score(torch.zeros(3, 0), 1.0).shape == (0,)
    for shape in ((0, 4), (4,)):
        with pytest.raises(InputError, match="at least one member"):
            ensemble_score(torch.zeros(shape), 1.0)
