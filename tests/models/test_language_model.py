from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, VOCAB, make, stock_logprobs, tree
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from truing.core.batch import collate
from truing.core.errors import InputError, ModelError
from truing.core.trees import Completion, Tree
from truing.models.attention import NAME
from truing.models.language_model import LanguageModel, Sharing
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings

TREES = [tree(12, 7, 11, 3), tree(5, 4), tree(1, 1, 2), tree(30, 20, 25)]
SHARED = [name for name in FAMILIES if name not in ("bloom", "falcon_h1", "qwen3_next")]


@pytest.mark.parametrize("family", SHARED)
def test_a_tree_has_the_log_probs_of_the_stock_model(family: str) -> None:
    module = make(family)
    with torch.no_grad():
        expected = stock_logprobs(module, TREES)
        for sharing in ("tree", "packed"):
            model = LanguageModel(module, sharing=sharing)
            found = model.outputs(model.collate(TREES)).logprobs
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bloom", "falcon_h1"])
def test_models_that_cannot_share_are_exact_alone(family: str) -> None:
    module = make(family)
    with torch.no_grad():
        expected = stock_logprobs(module, TREES)
        model = LanguageModel(module, sharing="alone")
        torch.testing.assert_close(model.outputs(model.collate(TREES)).logprobs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "sharing"), [("llama", "tree"), ("gemma2", "packed"), ("bloom", "alone")])
def test_prompts_have_the_mean_hidden_states_of_the_stock_body(family: str, sharing: Sharing) -> None:
    module = make(family)
    with torch.no_grad():
        expected = [
            module.base_model(torch.tensor(t.prompt, dtype=torch.int64)[None]).last_hidden_state[0].mean(dim=0)
            for t in TREES
        ]
        found = LanguageModel(module, sharing=sharing).prompt_states([t.prompt for t in TREES])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)


def gradients(module: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        # A key bias has no influence on softmax: its gradient is rounding alone, hence the small absolute allowance.
        error = float((grad - expected[name]).norm())
        assert error <= tolerance * float(expected[name].norm()) + 2e-5, name


def weighting(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_tree_has_the_gradients_of_the_stock_model(family: str, checkpointing: bool) -> None:
    module = make(family, tie_word_embeddings=True)
    expected = stock_logprobs(module, TREES)
    wanted = gradients(module, (expected * weighting(len(expected))).sum())
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    model = LanguageModel(module)
    if checkpointing:
        model.enable_checkpointing()
    batch = model.collate(TREES)
    found = model.outputs(batch).logprobs
    assert_same(gradients(module, (found * weighting(batch.num_targets)).sum()), wanted, 1e-5)


def test_a_tied_head_collects_gradients_from_both_its_uses() -> None:
    module = make("llama", tie_word_embeddings=True)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    model = LanguageModel(module)
    found = gradients(module, model.outputs(model.collate(TREES)).logprobs.sum())["model.embed_tokens.weight"]
    expected = gradients(module, stock_logprobs_of(module))["model.embed_tokens.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    used = torch.from_numpy(
        np.concatenate([t.prompt for t in TREES] + [c.tokens for t in TREES for c in t.completions])
    )
    unread = [token for token in range(VOCAB) if token not in set(used.tolist())]
    assert float(found[unread].abs().min()) > 0  # a token nobody read still has a probability to push down


def stock_logprobs_of(module: PreTrainedModel) -> Tensor:
    with LanguageModel(module).stock_attention():
        return stock_logprobs(module, TREES).sum()


def test_only_supervised_tokens_are_answered_in_order() -> None:
    rng = np.random.default_rng(0)
    first = tree(6, 5, 4)
    masked = Tree(first.prompt, tuple(Completion(c.tokens, rng.random(len(c.tokens)) < 0.5) for c in first.completions))
    none = Tree(first.prompt, (Completion(first.completions[0].tokens, np.zeros(5, dtype=bool)),))
    trees = [none, masked, TREES[0]]
    module = make("llama")
    for sharing in ("tree", "alone"):
        model = LanguageModel(module, sharing=sharing)
        with torch.no_grad(), model.stock_attention():
            expected = stock_logprobs(module, trees)
        found = model.outputs(model.collate(trees)).logprobs
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_entropy_and_temperature_are_those_of_the_stock_logits() -> None:
    module = make("cohere2")
    one = tree(6, 5)
    ids = torch.from_numpy(np.concatenate([one.prompt, one.completions[0].tokens])).long()
    with torch.no_grad():
        logits = module(input_ids=ids[None]).logits[0, 5:-1] / 0.6
        found = LanguageModel(module).outputs(collate([one]), entropy=True, temperature=0.6)
    expected = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(found.logprobs, expected.log_prob(ids[6:]), rtol=0, atol=1e-5)
    assert found.entropy is not None
    torch.testing.assert_close(found.entropy, expected.entropy(), rtol=0, atol=1e-5)


class Doubled(nn.Module):
    """A head someone has put an adapter into: its weight alone is not the whole story."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.weight = inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * self.inner(x)


def test_an_adapted_head_is_called_rather_than_read() -> None:
    module = make("llama")
    module.lm_head = Doubled(module.lm_head)
    expected = stock_logprobs(module, TREES)
    wanted = gradients(module, expected.sum())
    model = LanguageModel(module)
    found = model.outputs(model.collate(TREES)).logprobs
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert_same(gradients(module, found.sum()), wanted, 1e-5)


def test_bfloat16_modules_give_float32_log_probs_near_the_stock_ones() -> None:
    module = make("llama").bfloat16()
    with torch.no_grad():
        expected = stock_logprobs(module, TREES)
        model = LanguageModel(module)
        found = model.outputs(model.collate(TREES)).logprobs
    assert found.dtype == torch.float32
    assert float((found - expected).abs().mean()) < 0.02


def test_sequences_past_a_length_dependent_rope_do_not_change_their_neighbours() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 40, **factors}
    module = make("phi3", rope_parameters=rope, original_max_position_embeddings=40)
    trees = [tree(6, 5, 4), tree(30, 20)]
    with torch.no_grad():
        expected = stock_logprobs(module, trees)
        model = LanguageModel(module)
        torch.testing.assert_close(model.outputs(model.collate(trees)).logprobs, expected, rtol=0, atol=1e-5)


def test_a_batch_with_shared_prompts_is_refused_by_a_packing_model() -> None:
    with pytest.raises(InputError, match=r"model\.collate"):
        LanguageModel(make("llama"), sharing="packed").outputs(collate([tree(4, 3, 3)]))


def test_a_model_whose_attention_cannot_be_replaced_is_refused() -> None:
    with pytest.raises(ModelError, match="attention"):
        LanguageModel(make("bloom"))


def test_stock_attention_is_put_back_and_never_saved(tmp_path: Path) -> None:
    module = make("llama")
    model = LanguageModel(module)
    with model.stock_attention() as inside:
        assert inside.config._attn_implementation == "sdpa"
    assert module.config._attn_implementation == NAME
    with pytest.raises(IndexError), model.stock_attention() as inside:
        inside(input_ids=torch.tensor([[VOCAB]]))
    assert module.config._attn_implementation == NAME
    module.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_a_saved_model_is_the_base_without_its_adapter(family: str, tmp_path: Path) -> None:
    module = make(family, tie_word_embeddings=True)
    expected = stock_logprobs(module, TREES)
    adapters = Adapters(module)
    adapters.add("policy", AdapterSettings(rank=2), seed=0)
    LanguageModel(module).save(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(stock_logprobs(again.eval(), TREES), expected, rtol=0, atol=1e-6)


def test_sizes_are_read_from_the_model() -> None:
    model = LanguageModel(make("gpt2"))
    assert (model.vocab_size, model.max_positions) == (VOCAB, 128)
    assert LanguageModel(make("opt")).max_positions == 128
