"""Kernels that take a whole layout at once, which run on a GPU, held here to plain computations on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ragged_reference
import torch
from families import make
from test_attention import SHAPES, alone, flash, layout_of, tensors
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from truing.core.trees import Completion, Tree
from truing.models import attention, flex, kernel_trial, ragged
from truing.models.attention import tree_attention
from truing.models.kernel_trial import try_kernel
from truing.models.language_model import LanguageModel
from truing.models.ragged import ragged_trees
from truing.models.scored import scored_trees
from truing.models.selfcheck import self_check
from truing.models.tree_plan import TreePlan, visible

EDGES = [[(0, (3, 2))], [(2, (1, 1, 1))], [(3, (0, 2)), (1, ())], [(0, ()), (4, (5,))]]
"""Prompts and completions without a token, and of one."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What was found of kernels in one test is no news of the kernels of the next."""
    for cached in (kernel_trial._tried, ragged.varlen):
        cached.cache_clear()
    yield
    for cached in (kernel_trial._tried, ragged.varlen):
        cached.cache_clear()


def put_varlen(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor]) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    ragged.varlen.cache_clear()


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    put_varlen(monkeypatch, ragged_reference.varlen_attn)


@pytest.fixture
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flex, "compiled", lambda: (flex_attention, create_block_mask))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*flex_attention called without torch.compile.*")
        yield


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 8])
@pytest.mark.parametrize("shapes", [*SHAPES, *EDGES])
def test_one_ragged_call_gives_what_the_cpu_kernel_gives(shapes: list, window: int | None, groups: int) -> None:
    layout = layout_of(shapes)
    inputs, weights = tensors(layout.size, groups=groups)
    found = ragged_trees(*inputs, TreePlan(layout), 0.3, window)
    found_grads = torch.autograd.grad((found * weights).sum(), inputs)
    path = flash if shapes in SHAPES else alone
    expected = path(*inputs, layout, 0.3, window)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=2e-6)
    for grad, wanted in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=5e-6)


@pytest.mark.usefixtures("reference")
def test_a_batch_without_a_token_attends_to_nothing() -> None:
    inputs, _ = tensors(0)
    assert ragged_trees(*inputs, TreePlan(layout_of([])), 0.3, None).shape == (1, 0, 4, 8)


def test_segments_read_each_prompt_once_per_further_completion_and_are_made_once() -> None:
    plan = TreePlan(layout_of([(3, (2, 1, 0)), (2, (2,))]))
    segments = plan.segments(torch.device("cpu"))
    assert segments.query_ends.tolist() == [0, 5, 6, 10]
    assert segments.key_ends.tolist() == [0, 5, 9, 13]
    assert segments.gather is not None
    assert segments.gather.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9]
    assert (segments.longest_query, segments.longest_key) == (5, 5)
    assert plan.segments(torch.device("cpu")) is segments


def test_without_a_shared_prompt_no_key_is_copied() -> None:
    assert TreePlan(layout_of([(3, (2,)), (4, ()), (0, (1, 2))])).segments(torch.device("cpu")).gather is None


@pytest.mark.usefixtures("reference")
def test_a_kernel_without_grouped_heads_gets_copies_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def ungrouped(*args: Any, scale: float, window_size: tuple[int, int]) -> Tensor:
        return ragged_reference.varlen_attn(*args, scale=scale, window_size=window_size)

    layout = layout_of(SHAPES[2])
    inputs, _ = tensors(layout.size)
    expected = ragged_trees(*inputs, TreePlan(layout), 0.3, None)
    ragged.varlen.cache_clear()
    put_varlen(monkeypatch, ungrouped)
    assert torch.equal(ragged_trees(*inputs, TreePlan(layout), 0.3, None), expected)


@pytest.mark.usefixtures("reference")
def test_the_gradients_of_a_prompt_are_summed_in_float32() -> None:
    layout = layout_of([(1, (1,) * 400)])
    gather = TreePlan(layout).segments(torch.device("cpu")).gather
    key = torch.zeros(layout.size, 1, 8, dtype=torch.bfloat16, requires_grad=True)
    gathered = ragged._Gathered.apply(key, key, gather)[0]
    (grad,) = torch.autograd.grad(gathered.sum(), key)
    # 400 ones: bfloat16 has no number between 256 and 258, and adding one at a time would stay at 256.
    assert grad[0, 0, 0] == 400


def test_flash_attention_is_asked_only_for_what_it_has() -> None:
    def heads(width: int, dtype: torch.dtype, value_width: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        query, key = torch.zeros(1, 4, 2, width, dtype=dtype), torch.zeros(1, 2, 2, width, dtype=dtype)
        return query, key, torch.zeros(1, 2, 2, value_width or width, dtype=dtype)

    assert ragged.takes(*heads(64, torch.bfloat16))
    assert ragged.takes(*heads(256, torch.float16))
    assert not ragged.takes(*heads(64, torch.float32))
    assert not ragged.takes(*heads(60, torch.bfloat16))
    assert not ragged.takes(*heads(264, torch.bfloat16))
    assert not ragged.takes(*heads(64, torch.bfloat16, 32))
    for dtype in (torch.float32, torch.bfloat16):
        trial = try_kernel(*heads(60, dtype), None, None)
        assert not trial.passed
        assert "heads of 60" in trial.sentence


@pytest.mark.usefixtures("eager_flex")
@pytest.mark.parametrize("window", [None, 1, 8])
@pytest.mark.parametrize("shapes", [*SHAPES, *EDGES])
def test_flex_attention_gives_what_explicit_scores_give(shapes: list, window: int | None) -> None:
    layout = layout_of(shapes)
    inputs = [x.detach() for x in tensors(layout.size, width=16)[0]]  # a CPU has no backward pass of it
    plan = TreePlan(layout)
    found = flex.flex_trees(*inputs, plan, 1.7, window, 2.0)
    expected = scored_trees(*inputs, plan, 1.7, window, 0.0, 2.0, None)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("eager_flex")
@pytest.mark.parametrize("window", [None, 3])
def test_the_flex_mask_sees_what_trees_see(window: int | None) -> None:
    layout = layout_of([(4, (3, 2)), (2, (5,)), (0, (2, 1))])
    plan = TreePlan(layout)
    places = plan.places(torch.device("cpu"))
    seen = flex._seen(places, window)
    every = torch.arange(layout.size)
    found = seen(None, None, every[:, None], every[None, :])
    expected = torch.block_diag(*(visible(tree, window).float() for tree in layout.trees)).bool()
    assert torch.equal(found, expected)


CHECKED = {"queries": 4, "keys": 2, "width": 64}


def tried(softcap: float | None = None, *, windowed: bool = False, dtype: torch.dtype = torch.bfloat16) -> Any:
    heads = kernel_trial._Heads(torch.device("cpu"), dtype, windowed=windowed, softcap=softcap, **CHECKED)
    return kernel_trial._tried(heads)


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_kernel_that_keeps_its_promise_passes(windowed: bool, dtype: torch.dtype) -> None:
    assert tried(windowed=windowed, dtype=dtype) == kernel_trial.Trial(True, "")


def one_short(*args: Any, window_size: tuple[int, int], **kwargs: Any) -> Tensor:
    left, right = window_size
    return ragged_reference.varlen_attn(*args, window_size=(left - 1, right), **kwargs)


def without_gradient(*args: Any, **kwargs: Any) -> Tensor:
    query, key, *others = args
    return ragged_reference.varlen_attn(query, key.detach(), *others, **kwargs) + 0 * key.sum()


def with_nan_in_one_gradient(*args: Any, **kwargs: Any) -> Tensor:
    # The slope of a root at 0 is infinite, and times 0 no number.
    return ragged_reference.varlen_attn(*args, **kwargs) + 0 * torch.sqrt(0 * args[1]).sum()


@pytest.mark.parametrize(
    ("kernel", "windowed"),
    [
        (ragged_reference.top_left, False),
        (one_short, True),
        (without_gradient, False),
        (with_nan_in_one_gradient, False),
    ],
)
def test_a_kernel_that_computes_something_else_is_found_out(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor], windowed: bool
) -> None:
    put_varlen(monkeypatch, kernel)
    trial = tried(windowed=windowed)
    assert not trial.passed
    assert "is off by" in trial.sentence


def test_a_kernel_that_takes_one_length_alone_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def compiled_once(*args: Any, **kwargs: Any) -> Tensor:
        lengths.append(len(args[0]))
        if len(set(lengths)) > 1:
            raise RuntimeError("no code for another length")
        return ragged_reference.varlen_attn(*args, **kwargs)

    put_varlen(monkeypatch, compiled_once)
    trial = tried()
    assert not trial.passed
    assert "no code for another length" in trial.sentence


@pytest.mark.usefixtures("eager_flex")
def test_a_kernel_that_is_not_there_is_named_with_its_reason() -> None:
    for softcap, name in ((None, "flash attention"), (30.0, "FlexAttention")):
        trial = tried(softcap)
        assert not trial.passed
        assert name in trial.sentence
        assert "CPU" in trial.sentence


@pytest.mark.usefixtures("reference")
def test_a_trial_within_a_checkpointed_layer_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "GPUS", ("cpu",))
    layout = layout_of([(20, (4, 6))])
    inputs, weights = tensors(layout.size, width=16, dtype=torch.bfloat16)

    def layer(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return tree_attention(nn.Identity(), query, key, value, None, tree_layout=TreePlan(layout))[0]

    state = torch.random.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.utils.checkpoint.checkpoint(layer, *inputs, use_reentrant=False)
    grads = torch.autograd.grad((found * weights).sum(), inputs)
    expected = torch.autograd.grad((layer(*inputs) * weights).sum(), inputs)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def trees() -> list[Tree]:
    rng = np.random.default_rng(3)

    def completion(size: int) -> Completion:
        return Completion(rng.integers(5, 60, size).astype(np.int32), np.ones(size, dtype=bool))

    return [Tree(rng.integers(5, 60, 12).astype(np.int32), tuple(completion(n) for n in (5, 1, 9)))]


@pytest.mark.usefixtures("reference")
def test_a_model_on_such_a_device_takes_the_kernel_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make("llama", head_dim=8).to(torch.bfloat16)
    with torch.no_grad():
        expected = LanguageModel(module).outputs(LanguageModel(module).collate(trees())).logprobs
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[5:7])
        return ragged_reference.varlen_attn(*args, **{"enable_gqa": True, **kwargs})

    put_varlen(monkeypatch, counted)
    ragged.varlen.cache_clear()
    monkeypatch.setattr(attention, "GPUS", ("cpu",))
    check = self_check(module)
    assert (check.sharing, check.slowed) == ("tree", False)
    model = LanguageModel(module)
    calls.clear()
    with torch.no_grad():
        found = model.outputs(model.collate(trees())).logprobs
    assert calls == [(17, 21)] * module.config.num_hidden_layers
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)


def test_a_model_whose_kernel_fails_its_trial_still_shares_prompts_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "GPUS", ("cpu",))
    check = self_check(make("llama", head_dim=8).to(torch.bfloat16))
    assert (check.sharing, check.slowed) == ("tree", True)
    assert "computed once for all its completions" in check.sentence
    assert "flash attention over unequal lengths cannot be used" in check.sentence


@pytest.mark.usefixtures("eager_flex")
def test_a_soft_capped_model_falls_back_to_explicit_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "GPUS", ("cpu",))
    check = self_check(make("gemma2"))
    assert (check.sharing, check.slowed) == ("tree", True)
    assert "FlexAttention cannot be used" in check.sentence
