"""Laws of layouts: what is cut, what is sent, what pays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.planner.shapes import LLAMA_7B, write
from tests.planner.test_command import said
from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import architecture
from truing.planner.cluster import Cluster, cluster_of
from truing.planner.cost import Amount, cost_of
from truing.planner.machine import Rates, named_card
from truing.planner.memory import predict
from truing.planner.methods import METHODS
from truing.planner.request import Question, answer
from truing.planner.scaling import Scaling, scale
from truing.planner.setting import Setting, Work, even_row, packed
from truing.planner.sharding import BUFFERS, Layout, Traffic, rank_memory, traffic_of, units_of

SEVEN = architecture(LLAMA_7B, "config.json")
H100 = named_card("h100")
FULL = Setting("sft", METHODS["sft"], None, "bf16", "cuda", micro_tokens=4096)
LORA = replace(FULL, adapter=AdapterSettings())
NUMBERS = 6_738_415_616
"""Of Llama 2 7B, as published."""


def work(setting: Setting, rows: int = 4) -> Work:
    row = even_row(setting.method, 1024, setting.new_tokens, setting.method.group)
    prompts = rows if setting.method.rollouts else 0
    return Work.of_steps([packed([row] * rows, setting.micro_tokens)], 1, prompts=prompts, prompt=row.prompt)


def traffic(setting: Setting, layout: Layout, cluster: Cluster, rows: int = 4) -> Traffic:
    cost = cost_of(SEVEN, setting, work(setting, rows), cluster.machine.rates)
    return traffic_of(SEVEN, setting, layout, cluster, cost, work(setting, rows))


def scaled(
    tmp_path: Path, nodes: int = 2, network: str | None = None, rows: int | None = None, floor: float = 0.8
) -> Scaling:
    question = Question(write(tmp_path / "seven", LLAMA_7B), "sft", None, None, False, 1024, 8, None, 64)
    return scale(answer(question, H100, "cuda"), cluster_of(H100, nodes, 8, None, network), floor, rows)


def test_units_are_the_whole_model() -> None:
    units = units_of(SEVEN, FULL)
    assert units.weights == pytest.approx(2 * NUMBERS)
    assert units.gradients == pytest.approx(4 * NUMBERS)


def test_lasting_bytes_of_full_training_are_sixteen_a_weight_over_the_shards() -> None:
    """Float32 weights, gradients and two moments; a bf16 copy exists of what is gathered alone."""
    terms = rank_memory(SEVEN, FULL, Layout(1, 8), work(FULL)).terms
    lasting = terms["weights"] + terms["optimizer"] + terms["gradients"]
    assert lasting == pytest.approx(16 * NUMBERS / 8, rel=1e-6)
    assert terms["gathered"] < 2 * NUMBERS / 4


def test_more_shards_need_less_and_copies_change_nothing_but_a_communicator() -> None:
    eight, sixteen = (rank_memory(SEVEN, FULL, Layout(1, shards), work(FULL)).total for shards in (8, 16))
    assert sixteen == pytest.approx(eight - 16 * NUMBERS / 16, rel=1e-6)
    assert rank_memory(SEVEN, FULL, Layout(2, 8), work(FULL)).total == eight + BUFFERS


def test_a_copy_of_its_own_needs_what_one_device_alone_needs() -> None:
    alone = predict(SEVEN, LORA, work(LORA))
    assert rank_memory(SEVEN, LORA, Layout(8, 1), work(LORA)).total == alone.total + BUFFERS


def test_bytes_sent_in_a_step_of_full_training() -> None:
    """By hand: bf16 weights gathered forward and backward, float32 gradients scattered, each less one's own eighth."""
    found = traffic(FULL, Layout(1, 8), cluster_of(H100, 1, 8, None, None)).sent
    assert found == {
        "all-gather": pytest.approx(2 * 2 * NUMBERS * 7 / 8),
        "reduce-scatter": pytest.approx(4 * NUMBERS * 7 / 8),
    }


def test_two_micro_batches_gather_twice() -> None:
    cluster = cluster_of(H100, 1, 8, None, None)
    once, twice = (traffic(FULL, Layout(1, 8), cluster, rows).sent for rows in (4, 8))
    assert {name: 2 * value for name, value in once.items()} == pytest.approx(twice)


def test_an_adapters_gradients_are_small_though_frozen_weights_are_gathered() -> None:
    cluster = cluster_of(H100, 1, 8, None, None)
    full, lora = (traffic(setting, Layout(1, 8), cluster).sent for setting in (FULL, LORA))
    assert lora["all-gather"] >= full["all-gather"]
    trained = SEVEN.adapter_numbers(AdapterSettings())
    assert lora["reduce-scatter"] == pytest.approx(4 * trained * 7 / 8)


def test_copies_of_their_own_send_gradients_once_a_step() -> None:
    """By hand: an all-reduce of the adapters' float32 gradients moves them twice, less one's own part."""
    cluster = cluster_of(H100, 1, 8, None, None)
    trained = SEVEN.adapter_numbers(AdapterSettings())
    for rows in (4, 8):
        found = traffic(LORA, Layout(8, 1), cluster, rows)
        assert found.sent == {"all-reduce": pytest.approx(2 * 4 * trained * 7 / 8)}
        assert found.waited == found.seconds


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("shards", [1, 4, 8, 16])
def test_computation_never_waits_longer_than_communication_lasts(method: str, shards: int) -> None:
    for base in (FULL, LORA):
        setting = replace(base, name=method, method=METHODS[method])
        found = traffic(setting, Layout(16 // shards, shards), cluster_of(H100, 2, 8, None, None))
        assert 0 < found.waited <= found.seconds


def test_a_processor_hides_nothing() -> None:
    cluster = cluster_of(replace(H100, device="cpu"), 1, 8, None, None)
    found = traffic(FULL, Layout(1, 8), cluster)
    assert found.waited == found.seconds


def test_rollouts_hold_all_weights_whole() -> None:
    setting = replace(LORA, name="grpo", method=METHODS["grpo"], new_tokens=2048, checkpointing=True, micro_tokens=256)
    found = rank_memory(SEVEN, setting, Layout(1, 8), work(setting, 8))
    assert found.moment == "writing completions"
    assert found.terms["gathered"] >= 2 * NUMBERS


def test_layouts_fit_and_come_fastest_first(tmp_path: Path) -> None:
    found = scaled(tmp_path)
    assert all(laid.fits for laid in found.laid)
    assert [laid.seconds for laid in found.laid] == sorted(laid.seconds for laid in found.laid)
    assert all(laid.layout.world == 16 for laid in found.laid)
    assert {laid.layout.shards for laid in found.laid} <= {2, 4, 8, 16}, "one device cannot hold it"


def test_the_same_step_is_planned_on_every_size(tmp_path: Path) -> None:
    found = scaled(tmp_path, rows=64)
    assert {laid.rows for laid in found.sizes} == {64}
    worlds = [laid.layout.world for laid in found.sizes]
    assert worlds == sorted(worlds)
    assert worlds[-1] <= 64, "a device without a row does nothing"


def test_a_slow_network_ends_what_pays_at_one_node(tmp_path: Path) -> None:
    slow, fast = scaled(tmp_path, network="1GB/s", rows=64), scaled(tmp_path, rows=64)
    assert slow.pays is not None
    assert fast.pays is not None
    assert slow.pays.layout.world == 8
    assert fast.pays.layout.world > 8


def test_rows_that_do_not_divide_leave_devices_waiting(tmp_path: Path) -> None:
    """17 rows on 16 devices take as long as 32: the busiest has two."""
    odd, even = scaled(tmp_path, rows=17).laid[0], scaled(tmp_path, rows=32).laid[0]
    assert odd.computing == pytest.approx(even.computing)
    assert odd.speed == pytest.approx(even.speed * 17 / 32, rel=0.02)


def test_the_command_says_layouts_in_full_and_as_json(tmp_path: Path) -> None:
    model = str(write(tmp_path / "seven", LLAMA_7B))
    asked = ("--model", model, "--adapter", "none", "--gpu", "h100", "--nodes", "2", "--gpus", "8")
    text = said(*asked)
    assert "torchrun --nnodes 2 --nproc-per-node 8 -m truing train RECIPE --set parallel.shard=" in text
    assert "devices pay" in text or "every size looked at pays" in text
    (found,) = json.loads(said(*asked, "--json"))
    best = found["layouts"][0]
    assert best["total_bytes"] == sum(best["bytes"].values())
    assert found["pays_up_to_gpus"] in [size["gpus"] for size in found["sizes"]]


def test_a_model_that_fits_nowhere_is_said_with_what_it_needs(tmp_path: Path) -> None:
    model = str(write(tmp_path / "seven", LLAMA_7B))
    text = said("--model", model, "--adapter", "none", "--gpu", "rtx3060", "--gpus", "2")
    assert "does not fit" in text
    assert "over 2 devices" in text


def test_writing_reads_all_weights_for_each_token() -> None:
    """By hand: 64 rounds of 2 bytes a weight, and for each of 8 rows the keys and values of what is there."""
    setting = replace(LORA, name="grpo", method=replace(METHODS["grpo"], group=8), new_tokens=64)
    found = cost_of(SEVEN, setting, work(setting, 1), H100.rates).parts["writing"]
    keys = 2 * 32 * 4096 * 2  # two of 32 layers, 4,096 wide, 2 bytes
    assert found.read == pytest.approx(64 * 2 * NUMBERS + 8 * 64 * (960 + 32) * keys)
    assert found.seconds(H100.rates) > found.read / 3350e9


def test_an_amount_takes_as_long_as_its_parts_one_after_the_other() -> None:
    rates = Rates(products=10.0, attention=5.0, bandwidth=2.0, reading=4.0, launch=0.5)
    assert Amount(20.0, 5.0, 4.0, 2.0, 8.0).seconds(rates) == 2 + 1 + 2 + 1 + 2
    assert (Amount(1, 2, 3, 4, 5) + Amount(1, 1, 1, 1, 1) * 2) == Amount(3, 4, 5, 6, 7)
    assert Amount(20.0, 5.0, 4.0, 2.0, 8.0).seconds(Rates(10.0, 5.0)) == 3, "what is not known is left out"
