"""AdamW against its definition; float32 masters under narrower weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from truing.core.errors import NothingToTrain, RunError
from truing.core.parameters import ParameterGroup
from truing.training.optimizer import Optimizer
from truing.training.schedule import rate_factor
from truing.training.settings import OptimSettings

SETTINGS = OptimSettings(lr=0.1, weight_decay=0.01, max_grad_norm=None)


def optimizer(parameters: dict[str, Parameter], settings: OptimSettings = SETTINGS) -> Optimizer:
    return Optimizer([ParameterGroup(parameters, settings.lr or 0.0)], settings)


def test_two_steps_equal_adamw_written_out() -> None:
    """arXiv:1711.05101, algorithm 2, with bias correction, in float64."""
    weight = Parameter(torch.tensor([[0.5, -1.0]]))
    adam = optimizer({"w": weight})
    w, m, v = weight.detach().double().clone(), torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for t, (gradient, factor) in enumerate([([[0.3, -0.2]], 1.0), ([[-0.1, 0.4]], 0.5)], start=1):
        g = torch.tensor(gradient, dtype=torch.float64)
        adam.zero_grad()
        weight.grad = g.float()
        adam.step(factor)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        lr = 0.1 * factor
        w = w * (1 - lr * 0.01) - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach().double(), w, rtol=1e-6, atol=1e-6)


def test_vectors_are_not_decayed() -> None:
    vector, matrix = Parameter(torch.ones(3)), Parameter(torch.ones(3, 3))
    adam = optimizer({"norm": vector, "w": matrix}, OptimSettings(lr=0.1, weight_decay=0.5))
    vector.grad, matrix.grad = torch.zeros(3), torch.zeros(3, 3)
    adam.step(1.0)
    assert torch.equal(vector.detach(), torch.ones(3))
    torch.testing.assert_close(matrix.detach(), torch.full((3, 3), 0.95))


def test_small_updates_of_a_bf16_weight_are_not_rounded_away() -> None:
    """Each update is far below bf16's spacing near 1 (2^-8): only a float32 master can add them up."""
    weight = Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    adam = optimizer({"w": weight}, OptimSettings(lr=1e-4, max_grad_norm=None))
    for _ in range(100):
        adam.zero_grad()
        weight.sum().backward()
        adam.step(1.0)
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
def test_a_restored_optimizer_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    def run(steps: int, adam: Optimizer, weight: Parameter, start: int = 0) -> None:
        for step in range(start, start + steps):
            adam.zero_grad()
            (weight.float() * torch.arange(6.0).reshape(2, 3) * (step + 1)).sum().backward()
            adam.step(1.0)

    initial = torch.linspace(-1, 1, 6).reshape(2, 3).to(dtype)
    straight, restored = Parameter(initial.clone()), Parameter(initial.clone())
    adam = optimizer({"w": straight})
    run(3, adam, straight)
    saved = {name: t.clone() for name, t in adam.state().items()}
    run(2, adam, straight, start=3)
    other = optimizer({"w": restored})
    other.load_state(saved)
    run(2, other, restored, start=3)
    assert torch.equal(straight.detach(), restored.detach())
    assert torch.equal(adam.weights()["w"], other.weights()["w"])


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
