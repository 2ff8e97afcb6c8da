"""AdamW against its definition; float32 masters under narrower weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import Parameter

from truing.core.errors import NothingToTrain, RunError
from truing.core.parameters import ParameterGroup
from truing.training.backward_optimizer import optimizer_for
from truing.training.optimizer import Optimizer
from truing.training.schedule import rate_factor
from truing.training.settings import OptimSettings

BOTH = {"in_backward": True, "state": "8bit"}
SETTINGS = OptimSettings(lr=0.1, weight_decay=0.01, max_grad_norm=None)


def optimizer(parameters: dict[str, Parameter], settings: OptimSettings = SETTINGS) -> Optimizer:
    return optimizer_for([ParameterGroup(parameters, settings.lr or 0.0)], settings)


def test_two_steps_equal_adamw_written_out() -> None:
    """arXiv:1711.05101, algorithm 2, with bias correction, in float64."""
    weight = Parameter(torch.tensor([[0.5, -1.0]]))
    adam = optimizer({"w": weight})
    w, m, v = weight.detach().double().clone(), torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for t, (gradient, factor) in enumerate([([[0.3, -0.2]], 1.0), ([[-0.1, 0.4]], 0.5)], start=1):
        g = torch.tensor(gradient, dtype=torch.float64)
        adam.begin(factor)
        weight.grad = g.float()
        adam.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        lr = 0.1 * factor
        w = w * (1 - lr * 0.01) - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach().double(), w, rtol=1e-6, atol=1e-6)


def test_vectors_are_not_decayed() -> None:
    vector, matrix = Parameter(torch.ones(3)), Parameter(torch.ones(3, 3))
    adam = optimizer({"norm": vector, "w": matrix}, OptimSettings(lr=0.1, weight_decay=0.5))
    adam.begin(1.0)
    vector.grad, matrix.grad = torch.zeros(3), torch.zeros(3, 3)
    adam.step()
    assert torch.equal(vector.detach(), torch.ones(3))
    torch.testing.assert_close(matrix.detach(), torch.full((3, 3), 0.95))


def test_small_updates_of_a_bf16_weight_are_not_rounded_away() -> None:
    """Each update is far below bf16's spacing near 1 (2^-8): only a float32 master can add them up."""
    weight = Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    adam = optimizer({"w": weight}, OptimSettings(lr=1e-4, max_grad_norm=None))
    for _ in range(100):
        adam.begin(1.0)
        weight.sum().backward()
        adam.step()
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(adam.weights()["w"], torch.full((4, 4), 0.99), rtol=0, atol=1e-4)
    torch.testing.assert_close(weight.detach().float(), torch.full((4, 4), 0.99), rtol=0, atol=2**-8)


def test_gradients_of_a_bf16_weight_accumulate_in_float32() -> None:
    weight = Parameter(torch.ones(1, 1, dtype=torch.bfloat16))
    adam = optimizer({"w": weight}, OptimSettings(lr=1e-4, max_grad_norm=None))
    for scale in (256.0, 1.0, 1.0):  # in bf16, 256 + 1 is 256
        (weight * scale).sum().backward()
    assert adam.clip() == 258.0
    assert weight.grad is None


def test_clipping_scales_the_whole_gradient_to_the_norm() -> None:
    a, b = Parameter(torch.zeros(1, 1)), Parameter(torch.zeros(1))
    adam = optimizer({"a": a, "b": b}, OptimSettings(lr=0.1, max_grad_norm=1.0))
    a.grad, b.grad = torch.full((1, 1), 3.0), torch.full((1,), 4.0)
    assert adam.clip() == pytest.approx(5.0)
    assert a.grad.item() == pytest.approx(0.6, rel=1e-5)
    assert b.grad.item() == pytest.approx(0.8, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("more", "columns"),
    [({}, 3), ({"state": "8bit"}, 2100), ({"state": "8bit"}, 3), ({"in_backward": True}, 3), (BOTH, 2100)],
)
def test_a_restored_optimizer_goes_on_bit_for_bit(more: dict[str, Any], columns: int, dtype: torch.dtype) -> None:
    settings = OptimSettings(lr=0.1, weight_decay=0.01, max_grad_norm=None, **more)

    def run(steps: int, adam: Optimizer, weight: Parameter, start: int = 0) -> None:
        for step in range(start, start + steps):
            adam.begin(1.0)
            (weight.float() * torch.arange(float(weight.numel())).reshape(2, -1) * (step + 1)).sum().backward()
            adam.step()

    initial = torch.linspace(-1, 1, 2 * columns).reshape(2, columns).to(dtype)
    straight, restored = Parameter(initial.clone()), Parameter(initial.clone())
    adam = optimizer({"w": straight}, settings)
    run(3, adam, straight)
    saved = {name: t.clone() for name, t in adam.state().items()}
    run(2, adam, straight, start=3)
    assert adam.state_bytes == sum(t.nbytes for name, t in saved.items() if not name.startswith("step."))
    other = optimizer({"w": restored}, settings)
    other.load_state(saved)
    run(2, other, restored, start=3)
    assert torch.equal(straight.detach(), restored.detach())
    assert torch.equal(adam.weights()["w"], other.weights()["w"])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_moments_in_8_bits_move_a_weight_as_those_in_32_do_to_a_few_hundredths(decay: float) -> None:
    """The update is m/√v, and block-wise 8 bits keep each to a relative error of some hundredths (arXiv:2110.02861)."""
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(64, 100, generator=generator) + 0.5 for _ in range(10)]
    moved = []
    for state in ("fp32", "8bit"):
        weight = Parameter(torch.ones(64, 100))
        adam = optimizer({"w": weight}, OptimSettings(lr=0.01, weight_decay=decay, max_grad_norm=None, state=state))
        for gradient in gradients:
            adam.begin(1.0)
            weight.grad = gradient.clone()
            adam.step()
        moved.append(weight.detach() - 1)
        name, dtype = ("state1.w", torch.uint8) if state == "8bit" else ("exp_avg.w", torch.float32)
        assert adam.state()[name].dtype == dtype
    error = (moved[0] - moved[1]).norm() / moved[0].norm()
    assert 0 < error < 0.03


def test_small_tensors_keep_their_moments_in_float32_under_8_bits() -> None:
    moved = []
    for state in ("fp32", "8bit"):
        weight = Parameter(torch.ones(5))
        adam = optimizer({"w": weight}, OptimSettings(lr=0.01, max_grad_norm=None, state=state))
        for scale in (1.0, -3.0, 0.5):
            adam.begin(1.0)
            weight.grad = scale * torch.arange(1.0, 6.0)
            adam.step()
        moved.append(weight.detach())
    torch.testing.assert_close(*moved, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_in_the_backward_pass_are_those_after_it_with_one_gradient_at_a_time(dtype: torch.dtype) -> None:
    def made(**more: Any) -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(0)
        module = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4))).to(dtype)
        module[3].weight = module[0].weight  # tied: its gradient is whole only once
        return module, optimizer(dict(module.named_parameters()), OptimSettings(lr=0.1, max_grad_norm=None, **more))

    (plain, after), (other, during) = made(), made(in_backward=True)
    alive: list[int] = []

    def count(_: torch.Tensor) -> None:
        alive.append(sum(p.grad is not None for p in [*other.parameters(), *during._trained.values()]))

    for parameter in other.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    for factor in (1.0, 0.3):
        for module, adam in ((plain, after), (other, during)):
            adam.begin(factor)
            module(x).square().sum().backward()
        assert during.clip() == pytest.approx(after.clip(), rel=1e-6)
        after.step()
        during.step()
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert set(alive) == {0}, "a gradient is gone before the next one comes"


def test_a_gradient_that_is_not_finite_leaves_its_weight_alone_in_the_backward_pass() -> None:
    good, bad = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    adam = optimizer({"good": good, "bad": bad}, OptimSettings(lr=0.1, max_grad_norm=None, in_backward=True))
    adam.begin(1.0)
    (good.sum() + (bad * float("inf")).sum()).backward()
    assert not math.isfinite(adam.clip())
    assert torch.equal(bad.detach(), torch.ones(2))
    assert not torch.equal(good.detach(), torch.ones(2))


def test_clipping_is_refused_where_the_whole_gradient_is_never_there() -> None:
    with pytest.raises(ValidationError, match="max_grad_norm: null"):
        OptimSettings(in_backward=True)


def test_a_state_of_other_parameters_is_refused() -> None:
    adam = optimizer({"w": Parameter(torch.ones(2, 2))})
    with pytest.raises(RunError, match=r"weight\.(v|w)"):
        adam.load_state({"weight.v": torch.ones(2, 2)})


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(NothingToTrain):
        optimizer({})
    with pytest.raises(NothingToTrain, match="no gradient"):
        optimizer({"w": Parameter(torch.ones(2, 2))}).clip()


def test_schedules_start_above_zero_and_end_where_they_should() -> None:
    linear = OptimSettings(schedule="linear", warmup=0.1)
    factors = [rate_factor(step, 100, linear) for step in range(100)]
    assert factors[:2] == pytest.approx([1 / 11, 2 / 11])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.02
    cosine = OptimSettings(schedule="cosine", warmup=0.0, min_lr_ratio=0.2)
    assert rate_factor(0, 10, cosine) == 1.0
    assert rate_factor(5, 10, cosine) == pytest.approx(0.6)
    assert rate_factor(7, 10, cosine) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.7)))
    constant = OptimSettings(schedule="constant", warmup=0.0)
    assert {rate_factor(step, 10, constant) for step in range(10)} == {1.0}
