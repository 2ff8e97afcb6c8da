"""Two machines train one recipe, and one of them may go and come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks.two_nodes import STEPS, permitted, train_on_two


@pytest.mark.ranks
def test_a_machine_that_is_killed_and_comes_back_changes_nothing(tmp_path: Path) -> None:
    if not permitted():
        pytest.skip("network namespaces are not permitted here")
    outcome = train_on_two(tmp_path)
    assert outcome.steps == STEPS
    assert outcome.figures_apart < 1e-5
    assert outcome.weights_apart < 1e-5
    assert 5 <= outcome.restarted_at < STEPS, "it was killed in the middle"
