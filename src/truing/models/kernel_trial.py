"""Does a GPU's kernel compute what it should? Tried on the device itself, with heads as the model has them, once each.

A kernel may be missing from the installed torch, refuse the card, need a compiler that is not there, or mean something
else by an argument than the version that truing was written with. In each case the slower way is taken, and said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from truing.core.batch import Layout, Span, TreeSpans
from truing.models import ragged
from truing.models.flex import flex_trees
from truing.models.ragged import ragged_trees
from truing.models.scored import scored_trees
from truing.models.tree_plan import TreePlan

Shapes = Sequence[tuple[int, Sequence[int]]]
"""Tokens of prompts and of their completions."""

TREES: Shapes = ((150, (70, 1, 40)), (1, (5, 9)), (0, (3, 130)), (20, ()), (33, (64,)))
"""Prompts and completions that are tried: over and under a kernel's tiles, one token, none.

Then the first two of them, since what is compiled for one length is compiled anew for the next.
"""

WINDOW = 24
SCALE = 1.5
"""Times 1/√D: sharp enough that a single key which should not be seen shows."""

TOLERANCE = 0.03
"""Largest difference from explicit float32 scores, beside the largest number there; half precision alone makes 0.01."""

REFUSALS = (ImportError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError)
"""What a kernel raises that is missing or refuses."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of trying a kernel."""

    passed: bool
    sentence: str
    """Empty, or why another way is taken."""


@dataclass(frozen=True, slots=True)
class _Heads:
    """What decides which kernel runs."""

    device: torch.device
    dtype: torch.dtype
    queries: int
    keys: int
    width: int
    windowed: bool
    softcap: float | None


def try_kernel(query: Tensor, key: Tensor, value: Tensor, window: int | None, softcap: float | None) -> Trial:
    """Say whether the kernel for such heads can be trusted; the first question of its kind tries it."""
    if softcap is None and not ragged.takes(query, key, value):
        return Trial(False, f"flash attention does not take heads of {query.shape[-1]} in {query.dtype}")
    if value.shape[-1] != key.shape[-1]:
        return Trial(False, f"keys of {key.shape[-1]} and values of {value.shape[-1]} were not tried in one kernel")
    heads = _Heads(
        query.device, query.dtype, query.shape[1], key.shape[1], query.shape[-1], window is not None, softcap
    )
    return _tried(heads)


@cache
def _tried(heads: _Heads) -> Trial:
    name = "flash attention over unequal lengths" if heads.softcap is None else "FlexAttention"
    where = f"on {heads.device.type} with heads of {heads.width} in {str(heads.dtype).removeprefix('torch.')}"
    try:
        # The question may come from within a checkpointed layer, under autocast, without gradients: a thread has none
        # of these.
        with ThreadPoolExecutor(1) as alone:
            difference = _largest(alone.map(partial(_difference, heads), (TREES, TREES[:2])))
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as refusal:
        reason = (str(refusal).strip() or type(refusal).__name__).splitlines()[0][:160]
        return Trial(False, f"{name} cannot be used {where} ({reason}); the slower kernels compute the same")
    if not difference <= TOLERANCE:
        return Trial(
            False, f"{name} is off by {difference:.2g} of the largest number {where}; the slower kernels are used"
        )
    return Trial(True, "")


def _difference(heads: _Heads, trees: Shapes) -> float:
    """Largest relative difference of output and gradients from explicit scores in float32."""
    layout = _layout(trees)
    window = WINDOW if heads.windowed else None
    scale = SCALE * heads.width**-0.5
    generator = torch.Generator().manual_seed(7)

    def draw(number: int) -> Tensor:
        drawn = torch.randn(1, layout.size, number, heads.width, generator=generator)
        return drawn.to(heads.device, heads.dtype).transpose(1, 2)

    inputs = [draw(number).requires_grad_() for number in (heads.queries, heads.keys, heads.keys)]
    weights = draw(heads.queries).transpose(1, 2)
    plan = TreePlan(layout)
    if heads.softcap is None:
        out = ragged_trees(inputs[0], inputs[1], inputs[2], plan, scale, window)
    else:
        out = flex_trees(inputs[0], inputs[1], inputs[2], plan, scale, window, heads.softcap)
    found = [out, *torch.autograd.grad(out, inputs, weights)]
    wide = [x.detach().float().requires_grad_() for x in inputs]
    exact = scored_trees(wide[0], wide[1], wide[2], plan, scale, window, 0.0, heads.softcap, None)
    expected = [exact, *torch.autograd.grad(exact, wide, weights.float())]
    pairs = zip(found, expected, strict=True)
    return _largest(float((a.detach().float() - b.detach()).abs().max() / b.detach().abs().max()) for a, b in pairs)


def _largest(numbers: Iterable[float]) -> float:
    """The largest of them, NaN where one is NaN, which Python's own `max` may pass over."""
    return float(torch.tensor(list(numbers)).max())


def _layout(shapes: Shapes) -> Layout:
    trees, at = [], 0
    for prompt, completions in shapes:
        spans = [Span(at, at := at + size) for size in (prompt, *completions)]
        trees.append(TreeSpans(spans[0], tuple(spans[1:])))
    return Layout(tuple(trees), at)
