"""What a model wrote by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from truing.core.trees import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """One completion of a prompt."""

    tokens: IntArray
    """int32 [n], n ≥ 1, with the end token where there is one."""
    logprobs: npt.NDArray[np.float32]
    """float32 [n], log π(token | prompt, completion so far) under the distribution that it was drawn from.

    NaN where whoever wrote it could not tell; then it has to be computed from the model."""
    ended: bool
    """Whether the model ended it itself, and not the limit of new tokens."""
