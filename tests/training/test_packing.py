"""Which rows make a step, and how they are packed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from truing.data.packing import StepPlan, pack

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def plan(of: list[int], **changes: object) -> StepPlan:
    fields: dict[str, object] = {
        "sizes": tuple(of),
        "examples": 4,
        "tokens": None,
        "micro_tokens": 50,
        "seed": 3,
        "shuffle": True,
        "max_steps": None,
        "epochs": 1.0,
    }
    return StepPlan(**{**fields, **changes})  # type: ignore[arg-type]


@given(sizes, st.integers(1, 60))
def test_packing_keeps_every_item_once_and_within_capacity(of: list[int], capacity: int) -> None:
    bins = pack(of, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(of)))
    for b in bins:
        assert len(b) == 1 or sum(of[i] for i in b) <= capacity


@given(sizes, st.integers(1, 60))
def test_no_two_bins_would_fit_into_one(of: list[int], capacity: int) -> None:
    """So there are fewer than twice as many as the best packing has."""
    filled = sorted(sum(of[i] for i in b) for b in pack(of, capacity))
    assert len(filled) < 2 or filled[0] + filled[1] > capacity


def test_large_items_go_first_and_small_ones_fill_the_gaps() -> None:
    assert [sorted(b) for b in pack([10, 30, 20, 5, 15], 40)] == [[0, 1], [2, 3, 4]]


@given(sizes, st.integers(1, 7), st.floats(0.3, 3))
def test_a_pass_shows_every_row_once(of: list[int], examples: int, epochs: float) -> None:
    steps = list(plan(of, examples=examples, epochs=epochs).steps())
    rows = [row for step in steps for micro in step.micro_batches for row in micro]
    assert len(rows) == max(1, round(epochs * len(of)))
    first_pass = [row for step in steps for micro in step.micro_batches for row in micro if step.first == 0]
    assert set(first_pass) <= set(range(len(of)))
    counts = [rows.count(row) for row in range(len(of))]
    assert max(counts) - min(counts) <= 1
    assert all(step.rows == examples for step in steps[:-1])


@given(sizes, st.integers(0, 5))
def test_steps_from_the_middle_are_the_same_steps(of: list[int], start: int) -> None:
    whole = plan(of, max_steps=7)
    assert list(whole.steps(start)) == list(whole.steps())[start:]
    assert whole.count() == 7


@given(sizes, st.integers(1, 60))
def test_a_token_budget_is_kept(of: list[int], budget: int) -> None:
    steps = plan(of, examples=None, tokens=budget)
    for step in steps.steps():
        rows = [row for micro in step.micro_batches for row in micro]
        assert len(rows) == 1 or sum(of[row] for row in rows) <= budget
    assert steps.rows_seen() == len(of)


def test_file_order_is_kept_without_shuffling() -> None:
    (first, second) = plan([1, 2, 3], examples=2, shuffle=False).steps()
    assert sorted(first.micro_batches[0]) == [0, 1]
    assert second.micro_batches == ((2,),)
    assert (second.first, second.rows) == (2, 1)


def test_another_seed_gives_another_order() -> None:
    of = list(range(1, 21))
    orders = {tuple(step.micro_batches for step in plan(of, seed=seed).steps()) for seed in (1, 2)}
    assert len(orders) == 2
