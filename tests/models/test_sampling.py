from __future__ import annotations

import pytest
import torch
from families import VOCAB, make
from transformers import GenerationConfig

from truing.core.errors import InputError
from truing.models.language_model import LanguageModel
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings
from truing.models.sampling import generate

PROMPTS = [[5, 9, 33, 12, 7, 21, 40], [8], [11, 3, 50]]


class NoPad:
    pad_token_id = None


def run(model: LanguageModel, prompts=PROMPTS, **changes) -> list[list[int]]:
    arguments = {"max_new_tokens": 12, "seed": 0, "end_tokens": frozenset({2}), **changes}
    return generate(model, NoPad(), prompts, **arguments)


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
    draws = generate(model, NoPad(), [[8]] * 4000, max_new_tokens=1, temperature=1.5, seed=0, end_tokens=frozenset())
    counts = torch.bincount(torch.tensor(draws)[:, 0], minlength=VOCAB) / 4000
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
