"""Loss and KL of a text, against float64 sums over the logits that transformers itself computes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from families import VOCAB, make, tree
from torch import Tensor
from transformers import PreTrainedModel

from truing.core.trees import Tree
from truing.models import language_model
from truing.models.drift import evenly, kl, text_loss
from truing.models.language_model import LanguageModel

TREES = [tree(1, 23), tree(1, 9), tree(4, 17), tree(1, 1)]
FAMILIES = [("llama", "tree"), ("gemma2", "tree"), ("granite", "packed"), ("phi", "tree"), ("falcon_h1", "alone")]


def whole(module: PreTrainedModel, trees: list[Tree]) -> tuple[Tensor, Tensor]:
    """Log-probs of all targets and of the whole vocabulary before them, one sequence at a time: float64 [K], [K, V]."""
    own, all_of_them = [], []
    for branch in trees:
        ids = torch.from_numpy(np.concatenate([branch.prompt, branch.completions[0].tokens])).long()
        with torch.no_grad():
            logprobs = torch.log_softmax(module(ids[None]).logits[0].double(), -1)[len(branch.prompt) - 1 : -1]
        own.append(logprobs.gather(1, ids[len(branch.prompt) :, None])[:, 0])
        all_of_them.append(logprobs)
    return torch.cat(own), torch.cat(all_of_them)


def moved(module: PreTrainedModel) -> PreTrainedModel:
    """The same model a little further on."""
    other = copy.deepcopy(module)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return other


def look(module: PreTrainedModel, sharing: str, places: Tensor) -> tuple[float, list[Tensor]]:
    model = LanguageModel(module, sharing=sharing)
    seen: list[Tensor] = []
    batches = [model.collate(TREES[:2]), model.collate(TREES[2:])]
    return text_loss(model, batches, places, seen.append), seen


@pytest.mark.parametrize("most", [1000, 7])
@pytest.mark.parametrize(("family", "sharing"), FAMILIES)
def test_loss_and_kl_are_those_of_the_stock_model(family: str, sharing: str, most: int) -> None:
    before, after = make(family), moved(make(family))
    targets, start = whole(before, TREES)
    _, now = whole(after, TREES)
    places = evenly(len(targets), most)
    expected = (start.exp() * (start - now)).sum(-1)[places]
    assert float(expected.mean()) > 1e-3, "the models differ enough for a mistake to show"
    loss, starts = look(before, sharing, places)
    _, ends = look(after, sharing, places)
    assert loss == pytest.approx(-float(targets.mean()), abs=1e-5)
    torch.testing.assert_close(kl(torch.cat(starts), torch.cat(ends)), expected, rtol=0, atol=1e-5)


def test_a_model_has_not_moved_from_itself() -> None:
    module = make("llama")
    first, starts = look(module, "tree", evenly(50, 50))
    again, ends = look(module, "tree", evenly(50, 50))
    assert first == again
    assert torch.count_nonzero(kl(torch.cat(starts), torch.cat(ends))) == 0


def test_a_model_that_drops_is_looked_at_without_and_left_as_it_was() -> None:
    module = make("opt")
    expected = -float(whole(module, TREES)[0].mean())
    loss, _ = look(module.train(), "tree", evenly(50, 3))
    assert module.training
    assert loss == pytest.approx(expected, abs=1e-5)


def test_distributions_come_a_few_at_a_time_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module, places = make("gemma2"), evenly(50, 40)
    _, once = look(module, "tree", places)
    monkeypatch.setattr(language_model, "chunk_rows", lambda vocabulary, device: 3)
    _, cut = look(module, "tree", places)
    assert max(len(rows) for rows in cut) == 3
    torch.testing.assert_close(torch.cat(cut), torch.cat(once), rtol=0, atol=1e-6)


def test_no_chosen_place_gives_no_distribution_and_the_same_loss() -> None:
    module = make("llama")
    loss, seen = look(module, "tree", evenly(50, 0))
    assert seen == []
    assert loss == look(module, "tree", evenly(50, 50))[0]


def test_kl_of_two_known_distributions() -> None:
    start, now = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    found = kl(start.clamp_min(1e-38).log(), now.log())
    by_hand = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(2)]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("count", "most"), [(50, 7), (7, 7), (5, 9), (1, 1), (VOCAB, VOCAB - 1)])
def test_places_are_ascending_distinct_and_within(count: int, most: int) -> None:
    places = evenly(count, most).tolist()
    assert len(places) == min(count, most)
    assert places == sorted(set(places))
    assert places[0] >= 0
    assert places[-1] < count
