"""A measured machine is one that a plan can be made for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from truing.cli.main import cli
from truing.models import pace as pace_module
from truing.models.pace import pace


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FLOPS": 1e6, "MOVED": 2**12, "CALLS": 10, "REPEATS": 1}.items():
        monkeypatch.setattr(pace_module, name, value)


def test_every_rate_is_there_and_the_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found = pace(torch.device("cpu"), torch.float32, [(32, 64), (64, 32)], (2, 16))
    assert min(found.products, found.attention, found.bandwidth, found.launch) > 0
    assert torch.equal(torch.rand(1), expected)


def test_a_plan_with_measured_rates_says_a_time_and_where_it_comes_from(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {"model_type": "llama", "vocab_size": 100, "num_key_value_heads": 2, **shape}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    asked = ["plan", "--model", str(tmp_path), "--measure", "--device", "cpu", "--length", "32", "--examples", "1"]
    done = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "as just measured here" in done.output
    (plan,) = json.loads(CliRunner().invoke(cli, [*asked, "--json"], catch_exceptions=False).output)
    assert plan["seconds"] > 0


def test_a_card_is_not_measured_here(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["plan", "--model", str(tmp_path), "--gpu", "h100", "--measure"])
    assert done.exit_code == 2
    assert "--measure" in done.output
