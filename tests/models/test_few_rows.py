from __future__ import annotations

import pytest
import torch
from tests.models.test_lora_layers import IN, KIND_SETTINGS, OUT, frozen_conv, frozen_linear, make_layer
from torch import nn

from truing.models import few_rows as few
from truing.models.few_rows import FEWEST, MOST, few_rows
from truing.models.lora.layers import KINDS, AdaptedLinear, LayerPlan, LowRank, Selection, adapt
from truing.models.lora.settings import AdapterSettings

ROWS = (1, FEWEST - 1, FEWEST, 32, MOST, MOST + 1)


def rows_of(count: int) -> torch.Tensor:
    return torch.randn(1, count, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("settings", KIND_SETTINGS)
@pytest.mark.parametrize("bias", [True, False])
def test_an_adapted_layer_gives_the_same_for_any_number_of_rows(settings: AdapterSettings, bias: bool) -> None:
    layer, _ = make_layer(frozen_linear(bias=bias), settings)
    for count in ROWS:
        x = rows_of(count)
        with torch.no_grad():
            expected = layer(x)
            with few_rows(layer):
                torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_plain_layers_and_switched_off_adapters_give_the_same() -> None:
    adapted, _ = make_layer(frozen_linear())
    adapted._selection.name = None
    for layer in (frozen_linear(), frozen_linear(bias=False), adapted, make_layer(frozen_conv())[0]):
        for count in ROWS:
            x = rows_of(count)
            with torch.no_grad():
                expected = layer(x)
                with few_rows(layer):
                    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_an_adapter_that_is_chosen_meanwhile_is_the_one_that_runs() -> None:
    layer, _ = make_layer(frozen_linear())
    x = rows_of(16)
    with torch.no_grad(), few_rows(layer):
        layer._selection.name = None
        assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        layer._selection.name = "policy"
        assert not torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def large_layer(settings: AdapterSettings, dtype: torch.dtype, *, bias: bool = True) -> tuple[AdaptedLinear, LowRank]:
    """A layer large enough to be copied, with a trained adapter."""
    torch.manual_seed(0)
    plain = nn.Linear(512, 256, bias=bias, dtype=dtype).requires_grad_(False)
    assert plain.weight.numel() >= few.WORTH_COPYING
    layer = adapt(plain, Selection("policy"))
    plan = LayerPlan(settings.rank, settings.effective_alpha)
    low_rank = KINDS[settings.init, settings.dora](layer, plan, settings, torch.Generator().manual_seed(0))
    layer.adapters["policy"] = low_rank
    with torch.no_grad():
        for parameter in low_rank.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return layer.eval(), low_rank.eval()


@pytest.mark.parametrize("settings", KIND_SETTINGS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_large_layer_gives_the_same_from_its_copy(
    settings: AdapterSettings, bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    layer, _ = large_layer(settings, dtype, bias=bias)
    for count in (1, 32, 100):
        x = torch.randn(1, count, 512, generator=torch.Generator().manual_seed(count)).to(dtype)
        for chosen in ("policy", None):
            layer._selection.name = chosen
            with torch.no_grad():
                expected = layer(x)
                with few_rows(layer):
                    found = layer(x)
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_small_updates_are_not_rounded_away_in_half_precision() -> None:
    """Merged into a bf16 weight, an adapter as small as this would leave no trace."""
    layer, low_rank = large_layer(AdapterSettings(rank=2), torch.bfloat16, bias=False)
    with torch.no_grad():
        low_rank.lora_b.mul_(1e-4)
        layer.weight.fill_(1.0)
        x = torch.zeros(1, 16, 512, dtype=torch.bfloat16)
        x[..., 0], x[..., 1] = 1.0, -1.0  # of the base nothing is left
        with few_rows(layer):
            found = layer(x)
        assert found.abs().min() > 0
        torch.testing.assert_close(found, layer(x), rtol=2e-2, atol=0)


def test_an_adapter_chosen_meanwhile_runs_in_a_large_layer_too() -> None:
    layer, _ = large_layer(AdapterSettings(rank=2), torch.float32)
    x = torch.randn(16, 512)
    with torch.no_grad(), few_rows(layer):
        with_adapter = layer(x)
        layer._selection.name = None
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        layer._selection.name = "policy"
        assert torch.equal(layer(x), with_adapter)


def test_copies_take_no_more_than_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(3))).requires_grad_(False)
    monkeypatch.setattr(few, "ROOM", 2 * 4 * 512 * 512)
    made = []
    real = few.packed
    monkeypatch.setattr(few, "packed", lambda *given: made.append(given) or real(*given))
    x = torch.randn(4, 512)
    with torch.no_grad():
        expected = layers(x)
        with few_rows(layers):
            torch.testing.assert_close(layers(x), expected, rtol=1e-4, atol=1e-5)
    assert len(made) == 2


def test_layers_are_themselves_again_afterwards_also_after_a_fault() -> None:
    model = nn.Sequential(frozen_linear(), nn.Linear(OUT, OUT, dtype=torch.float64))
    x = rows_of(16)
    before = model(x)
    with few_rows(model):
        assert all("forward" in part.__dict__ for part in model)
    with pytest.raises(RuntimeError), few_rows(model):
        model(torch.zeros(16, IN + 1, dtype=torch.float64))
    assert all("forward" not in part.__dict__ for part in model)
    assert torch.equal(model(x), before)


def test_changed_weights_of_a_small_layer_are_seen() -> None:
    layer = frozen_linear()
    x = rows_of(16)
    with torch.no_grad(), few_rows(layer):
        before = layer(x)
        layer.weight.mul_(2.0)
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (before - layer.bias))
