"""Laws of the adapted layers, on single layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from truing.models.lora.layers import KINDS, AdaptedLinear, FusedProduct, LayerPlan, LowRank, Selection, adapt
from truing.models.lora.settings import AdapterSettings

IN, OUT, RANK = 7, 5, 3


def make_layer(
    plain: nn.Module, settings: AdapterSettings | None = None, *, trained: bool = True
) -> tuple[AdaptedLinear, LowRank]:
    """An adapted layer whose only adapter is active; unless `trained`, it is at its start."""
    settings = settings or AdapterSettings(rank=RANK)
    layer = adapt(plain, Selection("policy"))
    plan = LayerPlan(settings.rank, settings.effective_alpha)
    low_rank = KINDS[settings.init, settings.dora](layer, plan, settings, torch.Generator().manual_seed(0))
    layer.adapters["policy"] = low_rank
    if trained:
        with torch.no_grad():
            for parameter in low_rank.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return layer.eval(), low_rank.eval()


def frozen_linear(*, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT, bias=bias, dtype=dtype).requires_grad_(False)


def frozen_conv() -> nn.Module:
    torch.manual_seed(0)
    conv = Conv1D(OUT, IN).double()
    conv.bias.data.normal_()
    return conv.requires_grad_(False)


KIND_SETTINGS = [
    AdapterSettings(rank=RANK),
    AdapterSettings(rank=RANK, rslora=True, alpha=4),
    AdapterSettings(rank=RANK, dora=True),
    AdapterSettings(rank=RANK, init="pissa"),
]


def test_the_fused_product_has_the_gradients_of_finite_differences() -> None:
    torch.manual_seed(0)
    shapes = [(4, IN), (OUT, IN), (OUT,), (RANK, IN), (OUT, RANK)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(FusedProduct.apply, (*inputs, 1.7))


@pytest.mark.parametrize("bias", [True, False])
def test_the_output_is_the_input_times_the_sum_of_base_and_scaled_product(bias: bool) -> None:
    layer, low = make_layer(frozen_linear(bias=bias), AdapterSettings(rank=RANK, alpha=6))
    x = torch.randn(2, 4, IN, dtype=torch.float64)
    weight = layer.weight + (6 / RANK) * low.lora_b @ low.lora_a
    expected = x @ weight.T + (layer.bias if layer.bias is not None else 0)
    torch.testing.assert_close(layer(x), expected)


def test_rank_stabilised_scale_divides_by_the_root_of_the_rank() -> None:
    _, low = make_layer(frozen_linear(), AdapterSettings(rank=4, alpha=6, rslora=True))
    assert low.scale == 3.0
    assert make_layer(frozen_linear(), AdapterSettings(rank=4, alpha=6))[1].scale == 1.5


@pytest.mark.parametrize("settings", KIND_SETTINGS, ids=["lora", "rslora", "dora", "pissa"])
@pytest.mark.parametrize("plain", [frozen_linear, frozen_conv], ids=["linear", "conv1d"])
def test_the_adapted_weight_is_the_weight_that_the_layer_multiplies_by(plain, settings) -> None:
    layer, low = make_layer(plain(), settings)
    x = torch.randn(6, IN, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, low.adapted_weight(layer.matrix()), layer.bias))


@pytest.mark.parametrize("settings", KIND_SETTINGS, ids=["lora", "rslora", "dora", "pissa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_new_adapter_gives_the_bits_of_the_base(settings, dtype, bias) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 48, bias=bias, dtype=dtype).requires_grad_(False)
    x = torch.randn(3, 33, 64).to(dtype)
    expected = plain(x)
    layer, _ = make_layer(plain, settings, trained=False)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x.clone().requires_grad_()), expected)


def test_a_layer_without_an_active_adapter_gives_the_bits_of_the_plain_layer() -> None:
    for plain in (frozen_linear(), frozen_linear(bias=False), frozen_conv()):
        x = torch.randn(3, 5, IN, dtype=torch.float64)
        expected = plain(x)
        layer, _ = make_layer(plain)
        assert not torch.equal(layer(x), expected)
        layer._selection.name = None
        assert torch.equal(layer(x), expected)


def test_the_start_of_pissa_is_the_best_low_rank_approximation_of_the_weight() -> None:
    layer, low = make_layer(frozen_linear(), AdapterSettings(rank=RANK, init="pissa"), trained=False)
    residual = layer.weight - low.scale * low.lora_b @ low.lora_a
    # Eckart and Young: what is left of the weight has the remaining singular values.
    torch.testing.assert_close(
        torch.linalg.svdvals(residual)[: OUT - RANK], torch.linalg.svdvals(layer.weight)[RANK:], atol=1e-12, rtol=0
    )


def test_pissa_has_the_outputs_and_gradients_of_an_adapter_over_the_reduced_base() -> None:
    layer, low = make_layer(frozen_linear(), AdapterSettings(rank=RANK, init="pissa"))
    x = torch.randn(6, IN, dtype=torch.float64)
    grad = torch.randn(6, OUT, dtype=torch.float64)
    reduced = layer.weight - low.scale * low.start_b @ low.start_a
    expected = F.linear(x, reduced + low.scale * low.lora_b @ low.lora_a, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    fused = torch.autograd.grad(layer(x), [low.lora_a, low.lora_b], grad)
    torch.testing.assert_close(fused, torch.autograd.grad(expected, [low.lora_a, low.lora_b], grad))


def test_the_norm_of_dora_is_a_constant_for_the_gradient() -> None:
    layer, low = make_layer(frozen_linear(), AdapterSettings(rank=RANK, dora=True))
    x = torch.randn(6, IN, dtype=torch.float64)
    grad = torch.randn(6, OUT, dtype=torch.float64)
    direction = layer.weight + low.scale * low.lora_b @ low.lora_a
    weight = low.magnitude[:, None] * direction / direction.detach().norm(dim=1, keepdim=True)
    parameters = list(low.parameters())
    expected = torch.autograd.grad(F.linear(x, weight, layer.bias), parameters, grad)
    torch.testing.assert_close(torch.autograd.grad(layer(x), parameters, grad), expected)


def test_the_products_run_in_the_type_of_the_base_and_gradients_stay_wide() -> None:
    torch.manual_seed(0)
    layer, low = make_layer(nn.Linear(64, 48, dtype=torch.bfloat16).requires_grad_(False))
    assert low.lora_a.dtype == low.lora_b.dtype == torch.float32
    x = torch.randn(32, 64)
    out = layer(x.bfloat16())
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert low.lora_a.grad is not None
    assert low.lora_a.grad.dtype == torch.float32
    exact = low.scale * low.lora_b.sum(0)[:, None] * x.sum(0)[None, :]
    torch.testing.assert_close(low.lora_a.grad, exact.detach(), atol=0.02 * exact.abs().max().item(), rtol=0)


def test_a_frozen_base_collects_no_gradient_and_an_unused_input_gradient_is_not_computed() -> None:
    layer, low = make_layer(frozen_linear())
    x = torch.randn(4, IN, dtype=torch.float64)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is None
    assert x.grad is None
    assert low.lora_b.grad is not None


def test_the_output_may_be_changed_in_place() -> None:
    layer, low = make_layer(frozen_linear())
    x = torch.randn(2, 4, IN, dtype=torch.float64)
    out = layer(x)
    out += 1
    out.sum().backward()
    expected = low.scale * x.reshape(-1, IN).sum(0) @ low.lora_a.T
    assert low.lora_b.grad is not None
    torch.testing.assert_close(low.lora_b.grad[0], expected.detach())


def test_autocast_gives_the_output_in_its_type() -> None:
    layer, low = make_layer(nn.Linear(64, 48).requires_grad_(False))
    x = torch.randn(8, 64)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, atol=0.1, rtol=0.05)
    assert low.lora_a.grad is not None


def dropped_share(layer: AdaptedLinear, low: LowRank, x: Tensor) -> float:
    """Share of inputs that did not reach A: B is set to pass the first row of A through."""
    with torch.no_grad():
        low.lora_a.zero_()[0, 0] = 1.0
        low.lora_b.zero_()[0, 0] = 1.0
    with torch.no_grad():
        through = layer(x) - layer.base_product(x)
    return float((through[:, 0] == 0).double().mean())


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_drops_its_share_of_inputs_only_while_a_trainable_adapter_trains(dora: bool) -> None:
    settings = AdapterSettings(rank=RANK, dropout=0.25, dora=dora)
    layer, low = make_layer(frozen_linear(), settings)
    x = torch.ones(4000, IN, dtype=torch.float64)
    if dora:  # the base's share of DoRA's output is another thing than the adapter's
        layer.weight.data.zero_().fill_diagonal_(1e-12)
    assert dropped_share(layer, low, x) == 0.0
    layer.train()
    # 4000 draws: four standard deviations are 0.027
    assert dropped_share(layer, low, x) == pytest.approx(0.25, abs=0.027)
    low.requires_grad_(False)
    assert dropped_share(layer, low, x) == 0.0


def test_dropout_keeps_the_expected_output() -> None:
    layer, _ = make_layer(frozen_linear(), AdapterSettings(rank=RANK, dropout=0.5))
    x = torch.randn(1, IN, dtype=torch.float64)
    expected = layer(x)
    layer.train()
    mean = layer(x.expand(40000, IN)).mean(0, keepdim=True)
    torch.testing.assert_close(mean, expected, atol=0.1, rtol=0)


def test_attributes_of_the_plain_layer_can_be_read() -> None:
    plain = frozen_linear()
    layer, _ = make_layer(plain)
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert (layer.in_features, layer.out_features) == (IN, OUT)
    assert layer.plain() is plain
