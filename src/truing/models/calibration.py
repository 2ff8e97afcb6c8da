"""Which matrix products this machine does fast without doing them badly: timed and checked at start-up."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["highest", "medium"]

ROWS = 1024
"""Tokens of the products tried, as far as `FLOPS` allows; each try has a few more, as packed batches do."""

FLOPS = 5e8
"""Multiplications and additions of one product at most, so that a large model's start stays short."""

PRIMITIVES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"

KEPT_PRIMITIVES = "64"
"""oneDNN compiles, and by default keeps 1024 of, what it runs: one for each new shape. Packed steps are all new."""

CHECKED = 32
"""Rows compared with float64."""

REPEATS = 7

GAIN = 2.5
"""How much faster "medium" has to be before it is chosen. A product by itself flatters it: where it was 1.6 times as
fast here, training, whose packed steps bring new shapes all the time, took twice as long and 1.8 times the memory."""

ERROR_RATIO = 4.0
"""How much larger its error may be: another order of summation costs up to 2.5 times, bfloat16 thousands."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, and what follows."""

    matmul_precision: Precision
    """Argument of `torch.set_float32_matmul_precision`."""
    bf16_speedup: float
    """A bfloat16 product against a float32 one at the chosen precision."""
    seconds_highest: float
    seconds_medium: float
    seconds_bf16: float
    error_highest: float
    """Root-mean-square error of a product against float64, relative to its entries."""
    error_medium: float
    sentence: str


def fixed(calibration: Calibration, precision: Precision) -> Calibration:
    """Return the calibration with float32 products computed as a recipe asks."""
    seconds = calibration.seconds_medium if precision == "medium" else calibration.seconds_highest
    speedup = round(seconds / calibration.seconds_bf16, 2) if calibration.seconds_bf16 else calibration.bf16_speedup
    sentence = f"float32 products: {precision}, as asked for"
    return replace(calibration, matmul_precision=precision, bf16_speedup=speedup, sentence=sentence)


@dataclass(frozen=True, slots=True)
class Widths:
    """What decides the shapes of a model's products."""

    hidden: int = 512
    inner: int = 2048
    """Of the feed-forward block."""
    layers: int = 12


def calibrate(device: torch.device, widths: Widths | None = None) -> Calibration:
    """Return what suits products of these widths: measured once in a process, so that all of a chain runs alike.

    Only a CPU is tried. On a GPU "medium" means TensorFloat-32 or bfloat16, a real loss of digits, so it stays off.
    """
    if device.type != "cpu":
        return Calibration("highest", 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, f"{device.type}: float32 products stay exact")
    return _measured(widths or Widths())


def rate_of(calibration: Calibration, widths: Widths, *, bf16: bool) -> float | None:
    """Operations a second of the products that were timed; None where none were."""
    medium = calibration.matmul_precision == "medium"
    seconds = calibration.seconds_medium if medium else calibration.seconds_highest
    seconds = calibration.seconds_bf16 if bf16 else seconds
    hidden, inner, rows = _tried(widths)
    return None if seconds == 0 else 4 * rows * hidden * inner / seconds


def _tried(widths: Widths) -> tuple[int, int, int]:
    """Sides of the weight that is tried, and tokens."""
    hidden, inner = min(widths.hidden, ROWS), min(widths.inner, 4 * ROWS)
    return hidden, inner, max(64, min(ROWS, int(FLOPS / (2 * hidden * inner))))


@cache
def _measured(widths: Widths) -> Calibration:
    """Time products at two float32 precisions and in bfloat16, and choose; the global setting stays as it was."""
    os.environ.setdefault(PRIMITIVES, KEPT_PRIMITIVES)
    hidden, inner, rows = _tried(widths)
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows + REPEATS, hidden, generator=generator)
    weight = torch.randn(inner, hidden, generator=generator)
    exact = left[:CHECKED].double() @ weight.T.double()
    left_bf16, weight_bf16 = left.bfloat16(), weight.bfloat16()
    times: dict[str, list[float]] = {"highest": [], "medium": [], "bf16": []}
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        error_highest = _error(left @ weight.T, exact)
        torch.set_float32_matmul_precision("medium")
        error_medium = _error(left @ weight.T, exact)
        left_bf16 @ weight_bf16.T
        # By turns, so that a machine busy with something else for a moment is so for all three.
        for repeat in range(REPEATS):
            size = rows + repeat
            torch.set_float32_matmul_precision("highest")
            times["highest"].append(_seconds(left[:size], weight, widths.layers))
            torch.set_float32_matmul_precision("medium")
            times["medium"].append(_seconds(left[:size], weight, widths.layers))
            times["bf16"].append(_seconds(left_bf16[:size], weight_bf16, widths.layers))
    finally:
        torch.set_float32_matmul_precision(before)
    seconds_highest, seconds_medium, seconds_bf16 = (statistics.median(values) for values in times.values())
    sound = error_medium <= ERROR_RATIO * error_highest
    faster = seconds_highest / seconds_medium
    chosen: Precision = "medium" if sound and faster > GAIN else "highest"
    speedup = (seconds_medium if chosen == "medium" else seconds_highest) / seconds_bf16
    return Calibration(
        chosen,
        round(speedup, 2),
        seconds_highest,
        seconds_medium,
        seconds_bf16,
        error_highest,
        error_medium,
        _sentence(sound, faster, speedup, chosen, error_highest, error_medium),
    )


def apply(calibration: Calibration) -> None:
    """Set what was chosen for the whole process."""
    torch.set_float32_matmul_precision(calibration.matmul_precision)


def _seconds(left: Tensor, weight: Tensor, layers: int) -> float:
    """Seconds of a product in a model: forward and backward, the first layer's shape new to the library."""
    start = time.perf_counter()
    (left @ weight.T) @ weight
    first = time.perf_counter()
    (left @ weight.T) @ weight
    again = time.perf_counter()
    return (first - start + (layers - 1) * (again - first)) / layers


def _error(product: Tensor, exact: Tensor) -> float:
    """Root-mean-square error of the first rows, relative to the root-mean-square entry."""
    return float((product[:CHECKED].double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _sentence(
    sound: bool, faster: float, speedup: float, chosen: Precision, error_highest: float, error_medium: float
) -> str:
    bf16 = f"bfloat16 products are {speedup:.1f} times as fast as that"
    if chosen == "medium":
        return f"float32 products run at 'medium', {faster:.1f} times as fast with the same error; {bf16}"
    if not sound:
        ratio = error_medium / max(error_highest, 1e-30)
        return f"float32 products stay at 'highest': 'medium' has {ratio:.0f} times the error here; {bf16}"
    return f"float32 products stay at 'highest': 'medium' is not faster here ({faster:.2f} times); {bf16}"
