"""What a plan needs to know of the machine at hand, timed instead of looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from truing.models.calibration import Widths, apply, calibrate
from truing.models.pace import Pace, pace
from truing.planner.architecture import Architecture
from truing.planner.machine import Machine, Rates, this_cpu
from truing.planner.request import checkpoint_format
from truing.planner.setting import Base, DeviceKind


def measured_machine(model: Architecture, asked: Base | None, kind: DeviceKind | None) -> Machine:
    """Time what a model of these widths consists of, on the first GPU where there is one, else on the CPU."""
    base = asked or checkpoint_format(model)
    device = torch.device(kind or ("cuda" if torch.cuda.is_available() else "cpu"))
    apply(calibrate(device, Widths(model.hidden, model.inner, model.layers)))
    dtype = torch.float32 if base == "fp32" else torch.bfloat16
    found = pace(device, dtype, list(_sides(model)), (model.heads, model.head_width))
    return replace(_machine(device), rates=rates(found))


def rates(found: Pace) -> Rates:
    """What a plan computes with."""
    said = (
        f"{found.products / 1e12:.3g} TFLOP/s in products, {found.attention / 1e12:.3g} in attention and "
        f"{found.bandwidth / 1e9:,.3g} GB/s, as just measured here"
    )
    return Rates(found.products, found.attention, found.bandwidth, found.bandwidth, found.launch, said)


def _sides(model: Architecture) -> Iterator[tuple[int, int]]:
    """Inputs and outputs of the matrices of a layer; experts have a feed-forward's shape."""
    yield from ((matrix.inputs, matrix.outputs) for matrix in (*model.attention, model.output))
    yield from ((matrix.inputs, matrix.outputs) for matrix in (*model.feed, model.down))


def _machine(device: torch.device) -> Machine:
    if device.type == "cpu":
        return this_cpu()
    _, total = torch.cuda.mem_get_info(device)
    return Machine(torch.cuda.get_device_name(device), "cuda", total)
