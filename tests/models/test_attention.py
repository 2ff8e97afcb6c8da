from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from truing.core.batch import Layout, Span, TreeSpans
from truing.core.errors import ModelError
from truing.models import tree_plan
from truing.models.attention import fused_trees, tree_attention
from truing.models.tree_plan import Bush, Chain, Fork, TreePlan, visible

SHAPES = [
    [(5, ())],
    [(1, (1, 1))],
    [(20, (10, 10)), (3, (4,)), (7, (2, 3, 4))],
    [(40, (30, 50)), (9, (80,)), (100, ()), (6, (6, 6))],
    [(70, (1, 2, 3, 4, 5))],
]


def layout_of(shapes: list[tuple[int, tuple[int, ...]]]) -> Layout:
    trees, at = [], 0
    for prompt, completions in shapes:
        head = Span(at, at + prompt)
        at = head.stop
        spans = []
        for size in completions:
            spans.append(Span(at, at + size))
            at += size
        trees.append(TreeSpans(head, tuple(spans)))
    return Layout(tuple(trees), at)


def tensors(size: int, *, heads: int = 4, groups: int = 2, width: int = 8, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(size)

    def draw(n: int) -> Tensor:
        # As models make them: [1, T, heads, width] seen as [1, heads, T, width].
        return torch.randn(1, size, n, width, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2)

    return [draw(n).requires_grad_() for n in (heads, heads // groups, heads // groups)], draw(heads).transpose(1, 2)


def alone(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None = None) -> Tensor:
    """Every path run by itself with a plain causal softmax in float64: [1, T, H, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)

    def path(spans: list[Span]) -> Tensor:
        q, k, v = (torch.cat([x[:, :, s.start : s.stop] for s in spans], 2).double() for x in (query, key, value))
        n = q.shape[2]
        far = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        hidden = (far < 0) | (far >= (window or n))
        return torch.softmax((q @ k.mT * scale).masked_fill(hidden, float("-inf")), -1) @ v

    parts = []
    for tree in layout.trees:
        parts.append(path([tree.prompt]))
        parts += [path([tree.prompt, span])[:, :, tree.prompt.size :] for span in tree.completions]
    return torch.cat(parts, 2).transpose(1, 2)


def flash(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None = None) -> Tensor:
    plan = TreePlan(layout)
    return tree_attention(
        nn.Identity(), query, key, value, None, scaling=scale, tree_layout=plan, sliding_window=window
    )[0]


def fused(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None = None) -> Tensor:
    return fused_trees(query, key, value, TreePlan(layout), scale, window, 0.0)


def scored(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None = None
) -> Tensor:
    # A cap of 1e9 leaves float64 scores as they are to 1e-16, and chooses explicit scores.
    plan = TreePlan(layout)
    return tree_attention(
        nn.Identity(), query, key, value, None, scaling=scale, tree_layout=plan, sliding_window=window, softcap=1e4
    )[0]


Path = Callable[..., Tensor]


@pytest.mark.parametrize("path", [flash, fused, scored])
@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("shapes", SHAPES)
def test_a_tree_attends_like_its_completions_alone(shapes: list, window: int | None, path: Path) -> None:
    layout = layout_of(shapes)
    inputs, weights = tensors(layout.size)
    found = path(*inputs, layout, 0.3, window)
    found_grads = torch.autograd.grad((found * weights).sum(), inputs)
    expected = alone(*inputs, layout, 0.3, window)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
    for grad, wanted in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("shapes", SHAPES)
def test_bfloat16_attention_stays_within_its_rounding(shapes: list) -> None:
    layout = layout_of(shapes)
    inputs, weights = tensors(layout.size, dtype=torch.bfloat16)
    found = flash(*inputs, layout, 0.3)
    grads = torch.autograd.grad((found * weights).sum(), inputs)
    expected = alone(*inputs, layout, 0.3)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)
    for grad, want in zip(grads, wanted, strict=True):
        assert float((grad - want).double().norm() / want.double().norm()) < 2e-2


def test_merged_calls_pass_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_plan, "PAIRS_PER_CALL", 0)
    layout = layout_of([(3, (2, 1)), (2, (2,))])
    assert [type(block) for block in TreePlan(layout).blocks(None)] == [Fork, Chain]
    inputs, _ = tensors(layout.size, heads=2, groups=2, width=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: flash(q, k, v, layout, 0.4), inputs)


def test_small_trees_take_one_masked_call_and_large_ones_do_not() -> None:
    blocks = TreePlan(layout_of([(20, (5,)), (20, (10, 10)), (100, (9,)), (100, (90, 80))])).blocks(None)
    assert [(type(block), block.start, block.size) for block in blocks] == [
        (Chain, 0, 25),
        (Bush, 25, 40),
        (Chain, 65, 109),
        (Fork, 174, 170),
    ]


def test_a_window_longer_than_every_path_changes_nothing() -> None:
    layout = layout_of([(50, (30, 40)), (4, (4,))])
    plan = TreePlan(layout)
    assert plan.blocks(90) is plan.blocks(None)
    assert any(isinstance(block, Bush) and block.size == 120 for block in plan.blocks(89))


def test_a_window_counts_positions_not_places() -> None:
    tree = layout_of([(2, (3, 2))]).trees[0]
    seen = visible(tree, 2)
    # The second completion (places 5 and 6) continues the prompt at position 2: it sees place 1, its parent.
    assert seen[5].nonzero().flatten().tolist() == [1, 5]
    assert seen[6].nonzero().flatten().tolist() == [5, 6]


def test_soft_caps_and_sinks_follow_their_formulas() -> None:
    layout = layout_of([(4, ())])
    (query, key, value), _ = tensors(4, heads=2, groups=1, dtype=torch.float64)
    sinks = torch.tensor([0.7, -1.2], dtype=torch.float64, requires_grad=True)
    out, _ = tree_attention(
        nn.Identity(), query, key, value, None, scaling=1.0, tree_layout=TreePlan(layout), softcap=0.9, s_aux=sinks
    )
    row, head = 2, 1
    scores = 0.9 * torch.tanh(query[0, head, row] @ key[0, head, : row + 1].T / 0.9)
    weights = scores.exp() / (scores.exp().sum() + sinks[head].exp())
    torch.testing.assert_close(out[0, row, head], weights @ value[0, head, : row + 1], rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(out[0, row, head].sum(), sinks, retain_graph=True)
    (wanted,) = torch.autograd.grad((weights @ value[0, head, : row + 1]).sum(), sinks)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)


def test_what_tree_attention_cannot_place_is_refused() -> None:
    layout = layout_of([(4, ())])
    (query, key, value), _ = tensors(4)
    with pytest.raises(ModelError, match="without its batch's layout"):
        tree_attention(nn.Identity(), query, key, value, None)
    with pytest.raises(ModelError, match="mask or bias"):
        tree_attention(nn.Identity(), query, key, value, torch.zeros(4, 4), tree_layout=TreePlan(layout))
