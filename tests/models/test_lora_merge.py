"""Laws of merging with a check."""

from __future__ import annotations

import pytest
import torch
from lora_models import FAMILIES, TOKENS, logits, stir, tiny

from truing.core.errors import AdapterError
from truing.models.lora import merge
from truing.models.lora.adapters import Adapters
from truing.models.lora.merge import merge_adapter
from truing.models.lora.settings import AdapterSettings

PROBE = [[5, 9, 3, 8], [1], [], [7, 7, 7, 2, 4, 30]]


def stirred(family: str, *, dtype: torch.dtype = torch.float32, **fields: object) -> Adapters:
    adapters = Adapters(tiny(family, dtype=dtype))
    adapters.add("policy", AdapterSettings.model_validate({"rank": 4, **fields}), seed=0)
    stir(adapters, "policy", size=0.1)
    return adapters


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [{}, {"dora": True}, {"init": "pissa", "modules_to_save": ["lm_head"]}])
def test_the_report_states_the_largest_difference_that_the_merge_makes(family: str, fields: dict) -> None:
    adapters = stirred(family, **fields)
    with adapters.use("policy"):
        unmerged = [adapters.model(input_ids=torch.tensor([ids])).logits for ids in PROBE if ids]
    base = [adapters.model(input_ids=torch.tensor([ids])).logits for ids in PROBE if ids]
    report = merge_adapter(adapters, "policy", PROBE)
    after = [adapters.model(input_ids=torch.tensor([ids])).logits for ids in PROBE if ids]
    measured = max(float((a - b).abs().max()) for a, b in zip(after, unmerged, strict=True))
    effect = max(float((a - b).abs().max()) for a, b in zip(unmerged, base, strict=True))
    assert report.largest_difference == pytest.approx(measured, abs=2e-6)
    assert report.largest_difference < 1e-5 < report.tolerance
    assert report.effect == pytest.approx(effect, abs=1e-5)
    assert report.sequences == 3
    assert adapters.names == ()


def test_merging_in_bfloat16_is_measured_against_a_wider_tolerance() -> None:
    adapters = stirred("llama", dtype=torch.bfloat16)
    with adapters.use("policy"):
        unmerged = logits(adapters.model).float()
    report = merge_adapter(adapters, "policy", TOKENS.tolist())
    assert report.dtype == "bfloat16"
    assert report.tolerance > 0.05
    assert float((logits(adapters.model).float() - unmerged).abs().max()) == report.largest_difference > 1e-4


@pytest.mark.parametrize("trouble", ["tolerance", "nan"])
def test_a_merge_beyond_the_tolerance_is_refused_and_changes_nothing(monkeypatch, trouble: str) -> None:
    adapters = stirred("llama", dtype=torch.bfloat16)
    if trouble == "nan":
        with torch.no_grad():
            adapters.parameters("policy")["model.layers.0.mlp.up_proj.lora_B.weight"][0, 0] = float("nan")
    else:
        monkeypatch.setitem(merge.TOLERANCES, torch.bfloat16, 1e-6)
    adapters.model.train()
    adapters.switch("policy")
    with_adapter = logits(adapters.model)
    weights = {key: tensor.clone() for key, tensor in adapters.model.state_dict().items()}
    with pytest.raises(AdapterError, match="'policy' was not merged in bfloat16: logits differ"):
        merge_adapter(adapters, "policy", PROBE)
    assert adapters.active == "policy"
    assert adapters.model.training
    torch.testing.assert_close(dict(adapters.model.state_dict()), weights, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(logits(adapters.model), with_adapter, equal_nan=True, rtol=0, atol=0)


def test_a_probe_without_tokens_is_refused() -> None:
    with pytest.raises(AdapterError, match="at least one sequence"):
        merge_adapter(stirred("llama"), "policy", [[]])
