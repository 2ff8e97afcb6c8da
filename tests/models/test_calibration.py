from __future__ import annotations

import pytest
import torch

from truing.models import calibration as calibration_module
from truing.models.calibration import apply, calibrate, fixed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def measured_anew():
    calibration_module._measured.cache_clear()
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
    calibration_module._measured.cache_clear()


def with_clock(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Replace the measured time by one that depends on the precision in force."""

    def timed(left: torch.Tensor, weight: torch.Tensor, layers: int) -> float:
        return seconds["bf16" if left.dtype == torch.bfloat16 else torch.get_float32_matmul_precision()]

    monkeypatch.setattr(calibration_module, "_seconds", timed)


def with_errors(monkeypatch: pytest.MonkeyPatch, errors: dict[str, float]) -> None:
    monkeypatch.setattr(
        calibration_module, "_error", lambda product, exact: errors[torch.get_float32_matmul_precision()]
    )


SAME = {"highest": 2e-7, "medium": 4e-7}


@pytest.mark.parametrize(
    ("seconds", "errors", "chosen"),
    [
        ({"highest": 3.0, "medium": 1.0, "bf16": 0.5}, SAME, "medium"),
        ({"highest": 2.0, "medium": 1.0, "bf16": 0.5}, SAME, "highest"),
        ({"highest": 2.0, "medium": 2.0, "bf16": 0.5}, SAME, "highest"),
        ({"highest": 3.0, "medium": 1.0, "bf16": 0.5}, {"highest": 2e-7, "medium": 2e-3}, "highest"),
    ],
)
def test_medium_is_chosen_only_where_it_is_faster_and_as_exact(monkeypatch, seconds, errors, chosen) -> None:
    with_clock(monkeypatch, seconds)
    with_errors(monkeypatch, errors)
    found = calibrate(CPU)
    assert found.matmul_precision == chosen
    assert found.bf16_speedup == seconds[chosen] / seconds["bf16"]
    assert f"'{chosen}'" in found.sentence


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_calibrating_leaves_the_setting_and_applying_changes_it(before: str) -> None:
    torch.set_float32_matmul_precision(before)
    found = calibrate(CPU)
    assert torch.get_float32_matmul_precision() == before
    apply(found)
    assert torch.get_float32_matmul_precision() == found.matmul_precision


def test_measured_errors_are_those_of_float32() -> None:
    found = calibrate(CPU)
    assert 1e-8 < found.error_highest < 1e-6
    product = torch.randn(64, 64).bfloat16()
    exact = product[: calibration_module.CHECKED].double() @ product.double()
    assert calibration_module._error((product @ product).float(), exact) > 1e-4


def test_a_gpu_keeps_exact_products() -> None:
    assert calibrate(torch.device("cuda")).matmul_precision == "highest"


def test_the_users_choice_replaces_the_measured_one(monkeypatch) -> None:
    with_clock(monkeypatch, {"highest": 2.0, "medium": 1.0, "bf16": 0.5})
    with_errors(monkeypatch, SAME)
    asked = fixed(calibrate(CPU), "highest")
    assert (asked.matmul_precision, asked.bf16_speedup) == ("highest", 4.0)


def test_a_process_measures_once(monkeypatch) -> None:
    with_errors(monkeypatch, SAME)
    with_clock(monkeypatch, {"highest": 2.0, "medium": 1.0, "bf16": 0.5})
    first = calibrate(CPU)
    with_clock(monkeypatch, {"highest": 1.0, "medium": 2.0, "bf16": 0.5})
    assert calibrate(CPU) == first
