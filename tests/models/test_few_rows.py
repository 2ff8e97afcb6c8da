from __future__ import annotations

import pytest
import torch
from tests.models.test_lora_layers import IN, KIND_SETTINGS, OUT, frozen_conv, frozen_linear, make_layer
from torch import nn

from truing.models.few_rows import FEWEST, MOST, few_rows
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


def test_changed_weights_are_seen() -> None:
    layer = frozen_linear()
    x = rows_of(16)
    with torch.no_grad(), few_rows(layer):
        before = layer(x)
        layer.weight.mul_(2.0)
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (before - layer.bias))
