"""Parameters that are trained, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn import Parameter


@dataclass(frozen=True, slots=True, eq=False)
class ParameterGroup:
    """Parameters that share a learning rate."""

    parameters: Mapping[str, Parameter]
    lr: float
    """Peak rate."""
