"""The exact yardstick against sampling, against single answers, and against what it was before it was saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification, PreTrainedTokenizerBase

from tests.world.small import SMALL
from truing.build.load_result import Opened, open_result, open_scorer
from truing.core.errors import InputError, ModelError
from truing.core.samples import Sampled
from truing.evaluate.exact import Yardstick, balanced_prompts, language_of
from truing.models.decoding import Choice
from truing.models.enumeration import Place
from truing.models.sampling import sample
from truing.world.base_model import build_tokenizer, write_base_model
from truing.world.grammar import split_words
from truing.world.records import Row, WorldSettings, demonstration_rows
from truing.world.reviews import REVIEWS
from truing.world.reward import true_reward
from truing.world.world import World

PROMPTS = 4
SAMPLES = 4000
"""Of each prompt."""


@dataclass(frozen=True, slots=True)
class Models:
    """A reference that has learned to write a little, and a policy that went on from it."""

    reference: Opened
    policy: Opened
    yardstick: Yardstick


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    write_base_model(path, world=SMALL)
    return path


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    reference, policy = open_result(folder), open_result(folder)
    teach(reference, islice(demonstration_rows(WorldSettings(careful=0.0), SMALL), 640))
    policy.loaded.module.load_state_dict(reference.loaded.module.state_dict())
    teach(policy, islice(demonstration_rows(WorldSettings(careful=1.0, seed=1), SMALL), 128))
    return Models(reference, policy, Yardstick.of(reference, PROMPTS, SMALL))


def teach(opened: Opened, rows: Iterable[Row]) -> None:
    """One pass over reviews, 16 at a time."""
    tokenizer, batch = opened.tokenizer, []
    optimizer = torch.optim.AdamW(opened.loaded.module.parameters(), lr=5e-3)
    for row in rows:
        batch.append([*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id])
        if len(batch) < 16:
            continue
        width = max(map(len, batch))
        ids = torch.tensor([[*one, *[tokenizer.pad_token_id] * (width - len(one))] for one in batch])
        with opened.model.stock_attention() as module:
            logits = module(input_ids=ids[:, :-1]).logits
        targets = ids[:, 1:].flatten()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=tokenizer.pad_token_id).backward()
        optimizer.step()
        optimizer.zero_grad()
        batch.clear()


def test_the_reference_measured_by_itself_has_not_moved(models: Models) -> None:
    measured = models.yardstick.measure(models.reference, SMALL)
    known = models.yardstick.of_reference(SMALL)
    assert np.array_equal(measured.kl, np.zeros(PROMPTS))
    assert np.array_equal(known.kl, np.zeros(PROMPTS))
    for name in ("reward", "entropy", "grammatical", "words", "unexplored"):
        assert np.array_equal(getattr(measured, name), getattr(known, name)), name
    assert not known.unexplored.any()


def test_an_untrained_model_can_be_a_reference(folder: Path) -> None:
    """Nearly all that it writes leaves the language, where it is worth nothing."""
    untrained = open_result(folder)
    yardstick = Yardstick.of(untrained, 2, SMALL)
    exact = yardstick.measure(untrained, SMALL)
    assert np.array_equal(exact.kl, np.zeros(2))
    assert np.array_equal(exact.reward, yardstick.of_reference(SMALL).reward)
    assert (exact.reward < exact.grammatical).all()
    assert (exact.grammatical < 1e-6).all()


def test_what_a_changed_policy_is_worth_agrees_with_sampling(models: Models) -> None:
    """Within 4 standard errors for each figure, for two prompts that differ in place and verdict.

    Leaving the language is an outcome for each place where it can be left, whichever word was taken there: all words
    that lead out are summed, under both models, and what is written behind them counts for nothing.
    """
    exact = models.yardstick.measure(models.policy, SMALL)
    assert (exact.kl > 0.05).all()
    assert ((exact.grammatical > 0.1) & (exact.grammatical < 0.95)).all(), "the language is left, and not always"
    tokenizer = models.policy.loaded.tokenizer
    language, end = language_of(SMALL, models.yardstick.prompts[0], tokenizer), int(tokenizer.eos_token_id)
    asked = [list(tokenizer(prompt)["input_ids"]) for prompt in models.yardstick.prompts[:2]]
    written = sample(
        models.policy.model,
        asked,
        count=SAMPLES,
        max_new_tokens=language.height + 1,
        choice=Choice(),
        seed=0,
        end_tokens={end},
    )
    for number, (ids, drawn) in enumerate(zip(asked, written, strict=True)):
        prompt = models.yardstick.prompts[number]
        texts = [tokenizer.decode(one.tokens[: -1 if one.ended else None]) for one in drawn]
        whole = np.array([one.ended for one in drawn]) & np.array(
            [SMALL.is_grammatical(prompt, text) for text in texts]
        )
        rewards = [true_reward(prompt, text, SMALL) for text in texts]
        own, references = (outcome_logprobs(of, ids, drawn, language, end) for of in (models.policy, models.reference))
        estimates = {
            "reward": np.where(whole, rewards, 0.0),
            "kl": own - references,
            "entropy": -own,
            "grammatical": whole.astype(float),
            "words": np.array([len(split_words(text)) for text in texts])[whole],
        }
        for name, values in estimates.items():
            error = values.std(ddof=1) / np.sqrt(len(values))
            assert abs(getattr(exact, name)[number] - values.mean()) < 4 * error, name


@torch.no_grad()
def outcome_logprobs(
    opened: Opened, prompt: Sequence[int], drawn: Sequence[Sampled], language: Place, end: int
) -> np.ndarray:
    """Log-probability of each sample up to its end, or of leaving the language where it left: float64 [n]."""
    width = max(len(one.tokens) for one in drawn)
    rows = torch.tensor([[*prompt, *one.tokens.tolist(), *[0] * (width - len(one.tokens))] for one in drawn])
    with opened.model.stock_attention() as module:
        logits = module(input_ids=rows).logits[:, len(prompt) - 1 :]
    after = torch.log_softmax(logits.double(), dim=-1).numpy()
    found = np.zeros(len(drawn))
    for row, one in enumerate(drawn):
        place = language
        for step, token in enumerate(one.tokens.tolist()):
            inside = [*place.branches, *([end] if place.ends else [])]
            if token not in inside:
                found[row] += np.log(np.exp(np.delete(after[row, step], inside)).sum())
                break
            found[row] += after[row, step, token]
            if token == end:
                break
            place = place.branches[token]
    return found


def test_words_that_are_followed_rarely_leave_at_most_what_is_unexplored(models: Models) -> None:
    whole = models.yardstick.measure(models.policy, SMALL)
    before = np.zeros(PROMPTS)
    for least in (1e-5, 1e-4, 1e-3):
        part = models.yardstick.measure(models.policy, SMALL, least=least)
        assert (part.unexplored >= before).all(), "the higher the bar, the more is left out"
        for name in ("reward", "grammatical"):
            missing = getattr(whole, name) - getattr(part, name)
            assert (missing > -1e-6).all(), name
            assert (missing < part.unexplored + 1e-6).all(), name
        before = part.unexplored
    assert (before > 0).all()


def test_a_yardstick_read_back_is_the_one_that_was_saved(models: Models, tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=models.yardstick.answers.shape)
    kept = models.yardstick.with_scores("first", scores).with_scores("second/one", -scores)
    kept.save(tmp_path / "yardstick.npz")
    read = Yardstick.load(tmp_path / "yardstick.npz")
    assert read.prompts == kept.prompts
    for name in ("rewards", "answers", "departures"):
        assert np.array_equal(getattr(read, name), getattr(kept, name)), name
    assert list(read.proxies) == ["first", "second/one"]
    assert all(np.array_equal(read.proxies[name], kept.proxies[name]) for name in kept.proxies)
    assert read.measure(models.policy, SMALL).means() == kept.measure(models.policy, SMALL).means()


def test_a_reward_model_says_of_all_answers_what_it_says_of_each(models: Models, folder: Path, tmp_path: Path) -> None:
    """Each answer by itself goes through transformers' own classifier."""
    write_scorer(folder, tmp_path)
    yardstick = models.yardstick.with_proxy("score", open_scorer(tmp_path), SMALL)
    scores, tokenizer = yardstick.proxies["score"], models.reference.tokenizer
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for row, prompt in enumerate(yardstick.prompts):
        answers = list(SMALL.answers(prompt))
        assert scores[row].shape == (len(answers),)
        for number in range(row, len(answers), 997):
            ids = [*tokenizer(f"{prompt} {answers[number]}")["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                expected = float(alone(input_ids=torch.tensor([ids])).logits)
            assert scores[row, number] == pytest.approx(expected, abs=2e-5)
    assert scores.std() > 0.1
    exact = yardstick.measure(models.policy, SMALL)
    assert exact.means()["proxy/score"] == pytest.approx(exact.proxies["score"].mean())
    of_reference = yardstick.of_reference(SMALL).proxies["score"]
    for row, point in enumerate(yardstick.best_of("score", 1)):
        weights = np.exp(yardstick.answers[row]) / np.exp(yardstick.answers[row]).sum()
        assert of_reference[row] == pytest.approx(weights @ scores[row])
        assert (point.proxy, point.kl) == pytest.approx((of_reference[row], 0.0), abs=1e-9), "best of one is a sample"


def write_scorer(base: Path, folder: Path) -> None:
    """A sequence classifier of one label over the base model's configuration, with random weights."""
    opened = open_result(base)
    opened.tokenizer.save_pretrained(folder)
    config = opened.loaded.module.config
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        classifier = LlamaForSequenceClassification(config)
        torch.nn.init.normal_(classifier.score.weight)
    classifier.save_pretrained(folder)


def test_the_frontier_begins_at_the_reference(models: Models) -> None:
    assert [one.masses.sum() for one in models.yardstick.levels] == pytest.approx([1.0] * PROMPTS)
    rewards = models.yardstick.of_reference(SMALL).reward
    assert models.yardstick.frontier.reward_at(0.0) == pytest.approx(rewards.mean())
    policy = models.yardstick.measure(models.policy, SMALL)
    assert rewards.mean() < policy.reward.mean() < models.yardstick.frontier.reward_at(policy.kl.mean())


@pytest.mark.parametrize("world", [REVIEWS, SMALL], ids=["reviews", "small"])
def test_a_few_prompts_take_places_and_verdicts_in_turn(world: World) -> None:
    places, verdicts = len(world.places), len(world.verdicts)
    prompts = balanced_prompts(world, len(world.held_out))
    assert set(prompts) == set(world.held_out)
    for start in range(0, len(prompts), places):
        assert {prompt.place for prompt in prompts[start : start + places]} == set(world.places)
    for start in range(0, len(prompts), verdicts):
        assert {prompt.verdict for prompt in prompts[start : start + verdicts]} == set(world.verdicts)
    pairs = places * verdicts
    for start in range(0, len(prompts), pairs):
        assert len({(prompt.place, prompt.verdict) for prompt in prompts[start : start + pairs]}) == pairs
    for count in range(len(prompts)):
        assert balanced_prompts(world, count) == prompts[:count], "more prompts leave the first ones as they are"


def test_more_prompts_than_are_held_out_are_refused() -> None:
    for world in (REVIEWS, SMALL, replace(SMALL, settings=("old",))):
        with pytest.raises(InputError, match="too few held-out prompts"):
            balanced_prompts(world, len(world.held_out) + 1)


def test_a_tokenizer_without_the_words_is_refused(models: Models) -> None:
    foreign: PreTrainedTokenizerBase = build_tokenizer(REVIEWS)
    with pytest.raises(ModelError, match=r"the word '.+' of the world is no token of this model"):
        models.yardstick.measure_model(models.policy.model, foreign, SMALL)
