from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from truing.core.batch import Batch, collate
from truing.core.trees import Completion, Tree
from truing.data.packing import StepPlan
from truing.training import source
from truing.training.source import PreparedStep, TreeSource, one_ahead


def test_items_made_ahead_are_the_same_and_only_one_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1, 6):
            made.append(number)
            yield number

    used = []
    for item in one_ahead(items()):
        used.append(item)
        assert len(made) <= len(used) + 1
    assert used == [1, 2, 3, 4, 5]
    assert list(one_ahead(iter(()))) == []


def test_an_item_that_cannot_be_made_fails_where_it_is_asked_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("row 2")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="row 2"):
        next(ahead)


def test_a_source_that_is_left_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    ahead = one_ahead(iter(range(1, 100)))
    assert next(ahead) == 1
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before


def trees() -> list[Tree]:
    rng = np.random.default_rng(1)

    def completion(size: int) -> Completion:
        return Completion(rng.integers(0, 50, size).astype(np.int32), np.ones(size, dtype=bool), label=True)

    return [Tree(rng.integers(0, 50, 3 + n).astype(np.int32), (completion(2), completion(1 + n))) for n in range(7)]


class Pinless:
    """A device of the name of a GPU's, where nothing has to be moved."""

    type = "cuda"


def steps(device: object, start: int = 0) -> list[PreparedStep]:
    rows = trees()
    plan = StepPlan(tuple(tree.size for tree in rows), 2, None, 12, 5, True, 6, 9.0)
    return list(TreeSource(rows, plan, collate, lambda batch: batch, device, 6).steps(start))  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [0, 2, 5])
def test_preparing_ahead_changes_no_step_wherever_a_run_begins(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = steps(torch.device("cpu"))[start:]
    pinned = []
    monkeypatch.setattr(Batch, "pinned", lambda batch: pinned.append(batch) or batch)
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    found = steps(Pinless(), start)
    assert len(found) == 6 - start
    assert len(pinned) == sum(len(step.batches) for step in found)
    for step, wanted in zip(found, expected, strict=True):
        assert (step.index, step.totals, step.rows_done) == (wanted.index, wanted.totals, wanted.rows_done)
        for batch, other in zip(step.batches, wanted.batches, strict=True):
            assert batch.digests == other.digests
            assert all(torch.equal(getattr(batch, name), getattr(other, name)) for name in ("tokens", "predictors"))


def test_a_cpu_run_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "one_ahead", lambda items: pytest.fail("a thread was asked for"))
    assert len(steps(torch.device("cpu"))) == 6
