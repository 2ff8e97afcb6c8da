from __future__ import annotations

import numpy as np
import pytest
import torch
from families import VOCAB, make
from transformers import GenerationConfig

from truing.core.errors import InputError
from truing.core.trees import Completion, Tree
from truing.models.decoding import Choice, write
from truing.models.language_model import LanguageModel
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings
from truing.models.sampling import sample

PROMPTS = [[5, 9, 33, 12, 7, 21, 40], [8], [11, 3, 50]]


def run(model: LanguageModel, prompts=PROMPTS, temperature: float = 0.0, **changes) -> list[list[int]]:
    arguments = {"max_new_tokens": 12, "seed": 0, "end_tokens": frozenset({2}), **changes}
    return [rows[0].tokens.tolist() for rows in sample(model, prompts, choice=Choice(temperature), **arguments)]


def greedy(model: LanguageModel, prompt: list[int], count: int) -> list[int]:
    """The argmax of the full forward pass, token by token."""
    tokens = list(prompt)
    with torch.no_grad(), model.stock_attention() as module:
        for _ in range(count):
            tokens.append(int(module(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == 2:
                break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "falcon_h1"])
def test_greedy_completions_do_not_depend_on_their_neighbours(family: str) -> None:
    model = LanguageModel(make(family), sharing="alone" if family == "falcon_h1" else "tree")
    assert run(model) == [greedy(model, prompt, 12) for prompt in PROMPTS]


def test_a_completion_stops_with_its_end_token() -> None:
    model = LanguageModel(make("llama"))
    free = run(model, end_tokens=frozenset())
    assert [len(row) for row in free] == [12, 12, 12]
    end = free[0][4]
    cut = run(model, end_tokens=frozenset({end}))
    for row, whole in zip(cut, free, strict=True):
        assert row == whole[: whole.index(end) + 1 if end in whole else None]


def test_samples_follow_the_seed_and_leave_the_callers_random_state() -> None:
    model = LanguageModel(make("llama"))
    state = torch.random.get_rng_state()
    first, again, other = (run(model, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == again
    assert first != other


def test_samples_come_from_the_whole_distribution_whatever_the_checkpoint_says() -> None:
    module = make("llama")
    module.generation_config = GenerationConfig(top_k=1, repetition_penalty=5.0, do_sample=True)
    model = LanguageModel(module)
    with torch.no_grad(), model.stock_attention():
        expected = torch.softmax(module(input_ids=torch.tensor([[8]])).logits[0, -1] / 1.5, -1)
    draws = sample(model, [[8]], count=4000, max_new_tokens=1, choice=Choice(1.5), seed=0, end_tokens=frozenset())[0]
    counts = torch.bincount(torch.tensor([int(row.tokens[0]) for row in draws]), minlength=VOCAB) / 4000
    # Total variation of 4000 draws over 61 outcomes is about 0.04 by chance; top-k 1 would make it nearly 1.
    assert float((counts - expected).abs().sum() / 2) < 0.08
    assert module.generation_config.top_k == 1


def test_adapters_in_place_take_part() -> None:
    module = make("llama")
    model = LanguageModel(module)
    before = run(model)
    adapters = Adapters(module)
    adapters.add("policy", AdapterSettings(rank=4), seed=0)
    with torch.no_grad():
        for parameter in adapters.parameters("policy").values():
            parameter.normal_()
    adapters.switch("policy")
    changed = run(model)
    assert changed != before
    assert changed == [greedy(model, prompt, 12) for prompt in PROMPTS]
    adapters.switch(None)
    assert run(model) == before


def test_checkpointing_and_training_mode_are_off_meanwhile_and_back_after() -> None:
    model = LanguageModel(make("gpt2", resid_pdrop=0.5, embd_pdrop=0.5))
    before = run(model)
    model.enable_checkpointing()
    assert run(model) == before
    assert model.module.training
    assert all(layer.gradient_checkpointing for layer in model.module.transformer.h)


def test_the_context_limits_what_is_generated() -> None:
    model = LanguageModel(make("gpt2", n_positions=10))
    assert len(run(model, prompts=[[5] * 8], end_tokens=frozenset())[0]) == 2
    with pytest.raises(InputError, match="10"):
        run(model, prompts=[[5] * 10])


def test_no_prompt_gives_nothing_and_an_empty_prompt_is_refused() -> None:
    model = LanguageModel(make("llama"))
    assert run(model, prompts=[]) == []
    with pytest.raises(InputError, match="empty"):
        run(model, prompts=[[5], []])


SAMPLED = {"count": 4, "max_new_tokens": 24, "choice": Choice(0.8), "seed": 3, "end_tokens": {2, 7, 9}}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "gpt_oss", "qwen3_moe", "falcon_h1"])
def test_captured_logprobs_are_those_of_a_fresh_forward_pass(family: str) -> None:
    model = LanguageModel(make(family), sharing="alone" if family == "falcon_h1" else "tree")
    found = sample(model, [list(range(3, 40)), *PROMPTS], **SAMPLED)
    trees = [
        Tree(
            np.array(prompt, dtype=np.int32),
            tuple(Completion(row.tokens, np.ones(len(row.tokens), dtype=np.bool_)) for row in rows),
        )
        for prompt, rows in zip([list(range(3, 40)), *PROMPTS], found, strict=True)
    ]
    with torch.no_grad():
        fresh = torch.cat([model.outputs(model.collate([tree]), temperature=0.8).logprobs for tree in trees])
    captured = np.concatenate([row.logprobs for rows in found for row in rows])
    assert np.abs(captured - fresh.numpy()).max() < 1e-5
    for rows in found:
        assert all(row.ended == (int(row.tokens[-1]) in {2, 7, 9}) for row in rows)
        assert all(row.ended or len(row.tokens) == 24 for row in rows)


def test_a_row_does_not_depend_on_what_is_written_beside_it() -> None:
    model = LanguageModel(make("llama"))

    def tokens(cache_tokens: int, count: int = 4) -> list[list[int]]:
        found = write(model, PROMPTS, **{**SAMPLED, "count": count}, cache_tokens=cache_tokens)
        return [row.tokens.tolist() for rows in found for row in rows]

    assert tokens(30_000) == tokens(60) == tokens(1)
    assert len({tuple(row) for row in tokens(30_000)[:4]}) > 1


def test_top_k_and_top_p_leave_only_the_likeliest() -> None:
    model = LanguageModel(make("llama"))
    with torch.no_grad(), model.stock_attention() as module:
        probs = torch.softmax(module(input_ids=torch.tensor([[8]])).logits[0, -1], -1)
    ranked = probs.argsort(descending=True).tolist()
    nucleus = ranked[: int((probs.sort(descending=True).values.cumsum(0) < 0.5).sum()) + 1]
    options = {"count": 600, "max_new_tokens": 1, "seed": 0, "end_tokens": frozenset()}
    drawn = [
        {int(row.tokens[0]) for row in sample(model, [[8]], choice=choice, **options)[0]}
        for choice in (Choice(1.0, top_k=3), Choice(1.0, top_p=0.5))
    ]
    assert drawn[0] == set(ranked[:3])
    assert drawn[1] <= set(nucleus)
    assert not Choice(1.0, top_k=3).whole
    assert Choice(0.7).whole
    with pytest.raises(InputError, match="top_p"):
        Choice(1.0, top_p=0.0)
