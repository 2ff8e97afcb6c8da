"""Which matrix products this machine does fast without doing them badly: timed and checked at start-up."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["highest", "medium"]

SIZE = 512
"""Rows and columns of the product tried: 0.27 GFLOP, a few milliseconds on a small machine."""

CHECKED = 32
"""Rows compared with float64."""

REPEATS = 7

GAIN = 1.1
"""How much faster "medium" has to be before it is chosen."""

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


def calibrate(device: torch.device) -> Calibration:
    """Time float32 products at two precisions and a bfloat16 one, and choose; leaves the global setting as it was.

    Only a CPU is tried. On a GPU "medium" means TensorFloat-32 or bfloat16, a real loss of digits, so it stays off.
    """
    if device.type != "cpu":
        return Calibration("highest", 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, f"{device.type}: float32 products stay exact")
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIZE, SIZE, generator=generator) for _ in range(2))
    exact = left[:CHECKED].double() @ right.double()
    left_bf16, right_bf16 = left.bfloat16(), right.bfloat16()
    times: dict[str, list[float]] = {"highest": [], "medium": [], "bf16": []}
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        error_highest = _error(left @ right, exact)
        torch.set_float32_matmul_precision("medium")
        error_medium = _error(left @ right, exact)
        left_bf16 @ right_bf16
        # By turns, so that a machine busy with something else for a moment is so for all three.
        for _ in range(REPEATS):
            torch.set_float32_matmul_precision("highest")
            times["highest"].append(_seconds(left, right))
            torch.set_float32_matmul_precision("medium")
            times["medium"].append(_seconds(left, right))
            times["bf16"].append(_seconds(left_bf16, right_bf16))
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


def _seconds(left: Tensor, right: Tensor) -> float:
    start = time.perf_counter()
    left @ right
    return time.perf_counter() - start


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
