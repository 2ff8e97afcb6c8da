from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from families import make
from lora_models import stir

from truing.core.errors import InputError, ModelError
from truing.core.trees import Completion, Tree
from truing.models import enumeration
from truing.models.enumeration import Place, answer_probabilities, answer_scores
from truing.models.heads import attach_score_head
from truing.models.language_model import LanguageModel
from truing.models.loading import SCORE
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings

END = 2
PROMPTS = [[5, 9, 33, 12, 7, 21, 40], [8], [11, 3, 50]]
EVERY_KIND = ["llama", "mistral", "gemma2", "gpt_oss", "gpt2", "opt", "cohere2"]


def language() -> Place:
    """Answers of one to nine tokens, with a shared middle that is reached after two or three of them."""
    stop = Place({}, ends=True)
    tail = Place({4: stop, 6: Place({7: stop, 8: stop}, ends=True)}, ends=True)
    middle = Place(dict.fromkeys(range(10, 16), tail), ends=False)
    deep = Place(
        {20: Place({21: Place({22: middle}, ends=False)}, ends=True), 23: Place({24: middle}, ends=False)}, False
    )
    return Place({30: deep, 31: Place({32: deep}, ends=True), 33: middle}, ends=False)


def walk(place: Place, before: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Place]]:
    """Every prefix with its place, depth first."""
    yield before, place
    for token, below in place.branches.items():
        yield from walk(below, (*before, token))


@torch.no_grad()
def by_hand(model: LanguageModel, prompt: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of answers and departures, from one full forward pass of each prefix by itself."""
    answers, departures, known = [], [], {(): 0.0}
    with model.stock_attention() as module:
        for prefix, place in walk(language()):
            logits = module(input_ids=torch.tensor([[*prompt, *prefix]])).logits[0, -1].double()
            after = torch.log_softmax(logits, dim=-1)
            for token in place.branches:
                known[*prefix, token] = known[prefix] + float(after[token])
            outside = [t for t in range(len(after)) if t not in place.branches and not (place.ends and t == END)]
            departures.append(known[prefix] + float(torch.logsumexp(after[outside], dim=0)))
            if place.ends:
                answers.append(known[prefix] + float(after[END]))
    return np.array(answers), np.array(departures)


@pytest.mark.parametrize("family", EVERY_KIND)
def test_every_answer_and_departure_has_the_probability_that_full_forward_passes_give_it(family: str) -> None:
    model = LanguageModel(make(family))
    found = answer_probabilities(model, PROMPTS, language(), END)
    for row, prompt in enumerate(PROMPTS):
        answers, departures = by_hand(model, prompt)
        np.testing.assert_allclose(found.answers[row], answers, atol=2e-5)
        np.testing.assert_allclose(found.departures[row], departures, atol=2e-5)


def test_answers_and_departures_are_all_that_can_happen() -> None:
    found = answer_probabilities(LanguageModel(make("llama")), PROMPTS, language(), END)
    total = np.exp(found.answers).sum(axis=1) + np.exp(found.departures).sum(axis=1)
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert not found.unexplored.any()


@pytest.mark.parametrize(("nodes", "tokens"), [(1, 1), (3, 7), (10, 8192), (500, 40)])
def test_how_the_walk_is_cut_into_passes_changes_nothing(
    nodes: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LanguageModel(make("olmo3"))
    whole = answer_probabilities(model, PROMPTS, language(), END)
    monkeypatch.setattr(enumeration, "TREE_NODES", nodes)
    monkeypatch.setattr(enumeration, "PASS_TOKENS", tokens)
    cut = answer_probabilities(model, PROMPTS, language(), END)
    np.testing.assert_allclose(cut.answers, whole.answers, atol=1e-5)
    np.testing.assert_allclose(cut.departures, whole.departures, atol=1e-5)


def test_prompts_do_not_see_each_other() -> None:
    model = LanguageModel(make("llama"))
    together = answer_probabilities(model, PROMPTS, language(), END)
    for row, prompt in enumerate(PROMPTS):
        alone = answer_probabilities(model, [prompt], language(), END)
        np.testing.assert_allclose(together.answers[row], alone.answers[0], atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing_and_are_given_back(threads: int) -> None:
    model = LanguageModel(make("llama"))
    alone = answer_probabilities(model, PROMPTS, language(), END)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = answer_probabilities(model, PROMPTS, language(), END)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found.answers, alone.answers, atol=1e-6)
    np.testing.assert_allclose(found.departures, alone.departures, atol=1e-6)


def test_dropout_is_off_meanwhile_and_on_again_after() -> None:
    model = LanguageModel(make("opt"))
    evaluated = answer_probabilities(model, PROMPTS, language(), END)
    model.module.train()
    found = answer_probabilities(model, PROMPTS, language(), END)
    np.testing.assert_array_equal(found.answers, evaluated.answers)
    assert model.module.training


def test_what_is_not_followed_is_unexplored_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enumeration, "TREE_NODES", 4)
    model = LanguageModel(make("llama"))
    whole = answer_probabilities(model, PROMPTS, language(), END)
    part = answer_probabilities(model, PROMPTS, language(), END, least=3e-5)
    followed = np.isfinite(part.answers)
    assert 0 < followed.sum() < followed.size
    np.testing.assert_allclose(part.answers[followed], whole.answers[followed], atol=1e-6)
    total = np.exp(part.answers).sum(axis=1) + np.exp(part.departures).sum(axis=1) + part.unexplored
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert (part.unexplored > 0).all()


def test_an_adapter_in_place_is_the_policy_that_is_measured() -> None:
    model = LanguageModel(make("llama"))
    before = answer_probabilities(model, PROMPTS, language(), END)
    adapters = Adapters(model.module)
    adapters.add("policy", AdapterSettings(rank=4), seed=0)
    stir(adapters, "policy")
    with adapters.use("policy"):
        moved = answer_probabilities(model, PROMPTS, language(), END)
        answers, _ = by_hand(model, PROMPTS[0])
    np.testing.assert_allclose(moved.answers[0], answers, atol=2e-5)
    assert np.abs(moved.answers - before.answers).max() > 1e-3


def test_a_reward_model_scores_every_answer_as_it_does_alone() -> None:
    module = make("llama")
    attach_score_head(module, SCORE)
    torch.nn.init.normal_(module.get_submodule(SCORE).weight)
    model = LanguageModel(module)
    answers = [prefix for prefix, place in walk(language()) if place.ends]
    found = answer_scores(model, PROMPTS, language(), END)
    assert found.shape == (len(PROMPTS), len(answers)) == (len(PROMPTS), language().answers)
    for row, prompt in enumerate(PROMPTS):
        trees = [Tree(np.array(prompt, np.int32), (_completion([*answer, END]),)) for answer in answers]
        with torch.no_grad():
            alone = model.completion_scores(model.collate(trees)).numpy()
        np.testing.assert_allclose(found[row], alone, atol=2e-5)


def test_the_language_knows_how_large_it_is() -> None:
    prefixes = list(walk(language()))
    assert language().prefixes == len(prefixes)
    assert language().answers == sum(place.ends for _, place in prefixes)
    assert language().height == max(len(prefix) for prefix, _ in prefixes)
    written = language().with_end_token(END)
    assert written.answers == language().answers
    assert all(prefix[-1] == END for prefix, place in walk(written) if place.ends)


def test_an_empty_prompt_and_a_model_without_tree_attention_are_refused() -> None:
    with pytest.raises(InputError, match="at least one token"):
        answer_probabilities(LanguageModel(make("llama")), [[]], language(), END)
    with pytest.raises(ModelError, match="tree attention"):
        answer_probabilities(LanguageModel(make("bloom"), sharing="alone"), PROMPTS, language(), END)


def _completion(tokens: list[int]) -> Completion:
    return Completion(np.array(tokens, np.int32), np.ones(len(tokens), np.bool_))
