from __future__ import annotations

import pytest
import torch
from torch import Tensor

from truing.models.logprobs import linear_logprobs, logits_logprobs

VARIANTS = [
    {},
    {"scale": 0.5},
    {"softcap": 0.8},
    {"temperature": 0.7},
    {"scale": 1.7, "softcap": 1.1, "temperature": 1.9},
]


def problem(rows: int = 9, width: int = 5, vocabulary: int = 13, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    floats = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((rows, width), (vocabulary, width), (vocabulary,))
    ]
    return [*floats, torch.randint(0, vocabulary, (rows,), generator=generator)]


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, scale=1.0, softcap=None, temperature=1.0):
    logits = (hidden @ weight.T + bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = torch.log_softmax(logits / temperature, -1)
    return logprobs[torch.arange(len(targets)), targets], torch.distributions.Categorical(logits=logprobs).entropy()


@pytest.mark.parametrize("rows_a_chunk", [100, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logprobs_entropy_and_gradients_equal_log_softmax(variant: dict, rows_a_chunk: int) -> None:
    *inputs, targets = problem()
    hidden, weight, bias = inputs
    chunk = rows_a_chunk * 4 * 13
    found = linear_logprobs(hidden, weight, targets, bias=bias, entropy=True, chunk_bytes=chunk, **variant)
    expected = plain(hidden, weight, bias, targets, **variant)
    mixed = torch.arange(1.0, 10.0, dtype=torch.float64)
    for ours, theirs in zip(found[:2], expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    ours = torch.autograd.grad((found[0] * mixed).sum() + (found[1] * mixed.flip(0)).sum(), inputs)
    theirs = torch.autograd.grad((expected[0] * mixed).sum() + (expected[1] * mixed.flip(0)).sum(), inputs)
    for grad, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_pass_finite_differences(variant: dict) -> None:
    hidden, weight, bias, targets = problem(rows=4, width=3, vocabulary=6)

    def run(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor | None]:
        return linear_logprobs(h, w, targets, bias=b, entropy=True, chunk_bytes=2 * 4 * 6, **variant)[:2]

    assert torch.autograd.gradcheck(run, (hidden, weight, bias))


def test_chunks_change_nothing_in_float32() -> None:
    hidden, weight, bias, targets = problem(rows=50, dtype=torch.float32)
    whole, _, _ = linear_logprobs(hidden, weight, targets, bias=bias)
    cut, _, _ = linear_logprobs(hidden, weight, targets, bias=bias, chunk_bytes=7 * 4 * 13)
    torch.testing.assert_close(whole, cut, rtol=0, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(whole.sum(), [hidden, weight, bias]),
        torch.autograd.grad(cut.sum(), [hidden, weight, bias]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows_a_chunk", [100, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_frozen_head_gives_the_same_gradient_and_gets_none(variant: dict, rows_a_chunk: int) -> None:
    hidden, weight, bias, targets = problem()
    frozen = weight.detach(), bias.detach()
    logprobs, entropy, _ = linear_logprobs(
        hidden, frozen[0], targets, bias=frozen[1], chunk_bytes=rows_a_chunk * 4 * 13, **variant
    )
    assert entropy is None
    mixed = torch.arange(1.0, 10.0, dtype=torch.float64)
    expected, _ = plain(hidden, *frozen, targets, **variant)
    torch.testing.assert_close(logprobs, expected)
    (wanted,) = torch.autograd.grad((expected * mixed).sum(), hidden)
    for _ in range(2):
        (found,) = torch.autograd.grad((logprobs * mixed).sum(), hidden, retain_graph=True)
        torch.testing.assert_close(found, wanted)
    assert weight.grad is None
    assert bias.grad is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_log_squares_is_the_log_of_the_sum_of_squared_probabilities(variant: dict) -> None:
    hidden, weight, bias, targets = problem()
    _, _, squares = linear_logprobs(hidden, weight, targets, bias=bias, squares=True, chunk_bytes=4 * 4 * 13, **variant)
    every = torch.arange(13)
    table = torch.stack([plain(hidden, weight, bias, every[i].expand(len(hidden)), **variant)[0] for i in range(13)], 1)
    assert squares is not None
    assert not squares.requires_grad
    torch.testing.assert_close(squares, table.exp().square().sum(1).log().detach())


def test_no_targets_give_empty_results_and_zero_gradients() -> None:
    hidden, weight, _, _ = problem(rows=0)
    logprobs, entropy, _ = linear_logprobs(hidden, weight, torch.zeros(0, dtype=torch.int64), entropy=True)
    assert logprobs.shape == (0,)
    assert entropy is not None
    assert entropy.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad.shape == (0, 5)
    assert torch.count_nonzero(weight.grad) == 0


def test_a_second_backward_pass_gives_the_same_gradient() -> None:
    hidden, weight, _, targets = problem()
    logprobs, _, _ = linear_logprobs(hidden, weight, targets)
    first = torch.autograd.grad(logprobs.sum(), hidden, retain_graph=True)[0]
    second = torch.autograd.grad(logprobs.sum(), hidden)[0]
    assert torch.equal(first, second)


def test_half_precision_products_are_normalised_in_float32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(200, 64).bfloat16(), torch.randn(500, 64).bfloat16()
    targets = torch.randint(0, 500, (200,))
    found, entropy, _ = linear_logprobs(hidden, weight, targets, entropy=True)
    expected = torch.log_softmax((hidden @ weight.T).double(), -1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected[torch.arange(200), targets], rtol=0, atol=1e-5)
    assert entropy is not None
    torch.testing.assert_close(entropy.double(), -(expected * expected.exp()).sum(-1), rtol=0, atol=2e-5)


def test_half_precision_gradients_stay_within_their_rounding() -> None:
    *inputs, targets = problem(rows=40, dtype=torch.bfloat16)
    for chunk in (10**6, 7 * 4 * 13):
        found, entropy, _ = linear_logprobs(*inputs[:2], targets, bias=inputs[2], entropy=True, chunk_bytes=chunk)
        grads = torch.autograd.grad(found.sum() + entropy.sum(), inputs)
        wide = [x.detach().double().requires_grad_() for x in inputs]
        expected = plain(*wide, targets)
        wanted = torch.autograd.grad(expected[0].sum() + expected[1].sum(), wide)
        for grad, want in zip(grads, wanted, strict=True):
            assert grad.dtype == torch.bfloat16
            assert float((grad.double() - want).norm() / want.norm()) < 2e-2


def test_logits_of_another_head_give_the_same_log_probs() -> None:
    hidden, weight, bias, targets = problem(dtype=torch.float32)
    variant = VARIANTS[-1]
    found = logits_logprobs(hidden @ weight.T + bias, targets, **variant)
    expected = plain(hidden, weight, bias, targets, **variant)
    for ours, theirs in zip(found[:2], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_logits_of_the_whole_batch_never_exist_at_once() -> None:
    vocabulary, rows, budget = 4096, 512, 64 * 4 * 4096
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dim() == 2 and out.shape[1] == vocabulary:
                largest = max(largest, out.numel())
            return out

    hidden = torch.randn(rows, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    with Watch():
        logprobs, _, _ = linear_logprobs(hidden, weight, torch.zeros(rows, dtype=torch.int64), chunk_bytes=budget)
        logprobs.sum().backward()
    assert largest == 64 * vocabulary
