"""How fast this machine computes what a model consists of: timed in a few seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

REPEATS = 5

FLOPS = 2e10
"""Operations of one product at most, so that a large model is timed as quickly as a small one."""

ROWS, LENGTH = 2048, 1024
"""Tokens of a product, and of a row that attends to itself, at most."""

MOVED = 2**26
"""Numbers of the tensors that are added up for the bandwidth: far more than caches hold."""

CALLS = 500
"""Of an operation on one number."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What was reached, a second."""

    products: float
    """Operations of the model's linear layers, forward and backward."""
    attention: float
    """Operations of causal attention, forward and backward."""
    bandwidth: float
    """Bytes read and written."""
    launch: float
    """Seconds of an operation on next to nothing."""


def pace(device: torch.device, dtype: torch.dtype, sides: Sequence[tuple[int, int]], heads: tuple[int, int]) -> Pace:
    """Time products with matrices of these sides (inputs, outputs), and attention of so many heads of a width."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        work = [_product(device, dtype, *each) for each in sides]
        products = sum(flop for flop, _ in work) / sum(seconds for _, seconds in work)
        return Pace(products, _attention(device, dtype, *heads), _bandwidth(device), _launch(device))


def _product(device: torch.device, dtype: torch.dtype, inputs: int, outputs: int) -> tuple[float, float]:
    """Operations and seconds of a linear layer forward and backward, with the gradient of its weight."""
    rows = max(64, min(ROWS, int(FLOPS / (6 * inputs * outputs))))
    left = torch.randn(rows, inputs, device=device, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
    above = torch.randn(rows, outputs, device=device, dtype=dtype)

    def layer() -> tuple[Tensor, ...]:
        return left @ weight.T, above @ weight, above.T @ left

    return 6.0 * rows * inputs * outputs, _seconds(device, layer)


def _attention(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> float:
    """Operations a second, counted as a plan counts them: 4 for each pair and number forward, and 8 backward."""
    length = max(64, min(LENGTH, int((FLOPS / (6 * heads * width)) ** 0.5)))
    query, key, value = (
        torch.randn(1, heads, length, width, device=device, dtype=dtype, requires_grad=True) for _ in range(3)
    )

    def attend() -> object:
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return torch.autograd.grad(out.sum(), (query, key, value))

    pairs = length * (length + 1) / 2
    return 12 * heads * width * pairs / _seconds(device, attend)


def _bandwidth(device: torch.device) -> float:
    left, right = (torch.zeros(MOVED, device=device) for _ in range(2))
    return 3 * left.nbytes / _seconds(device, lambda: torch.add(left, right, out=left))


def _launch(device: torch.device) -> float:
    one = torch.zeros(1, device=device)

    def calls() -> None:
        for _ in range(CALLS):
            one.add_(1.0)

    return _seconds(device, calls) / CALLS


def _seconds(device: torch.device, run: Callable[[], object]) -> float:
    """The median of a few, after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
