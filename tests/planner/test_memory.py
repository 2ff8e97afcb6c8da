from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.families import make
from tests.planner.shapes import LLAMA_7B, QWEN3_06B, write
from truing.build import stage
from truing.core.parameters import ParameterGroup
from truing.models import decoding, logprobs
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings
from truing.objectives.registry import discover
from truing.planner import memory as memory_module
from truing.planner import request
from truing.planner.activations import Formats, kept_of_layer
from truing.planner.architecture import Architecture, architecture
from truing.planner.machine import GIB, Machine
from truing.planner.memory import MOST_HEAP, Memory, predict
from truing.planner.methods import METHODS
from truing.planner.plan import largest_that_fits, make_plan, smallest_change
from truing.planner.request import Question, table
from truing.planner.setting import Row, Setting, Work, even_row, packed
from truing.training.optimizer import Optimizer
from truing.training.settings import OptimSettings

SEVEN = architecture(LLAMA_7B, "config.json")
LORA = AdapterSettings()
QLORA = AdapterSettings(base="nf4")


def setting(method: str = "sft", **changes: object) -> Setting:
    plain = Setting(method, METHODS[method], LORA, "bf16", "cuda", checkpointing=True)
    return replace(plain, **changes)


def work_of(asked: Setting, length: int = 1024, examples: int = 1) -> Work:
    row = even_row(asked.method, length, asked.new_tokens, asked.method.group)
    prompts = examples if asked.method.rollouts else 0
    return Work.of_steps([packed([row] * examples, asked.micro_tokens)], 1, prompts=prompts, prompt=row.prompt)


def memory(asked: Setting, model: Architecture = SEVEN, length: int = 1024, examples: int = 1) -> Memory:
    return predict(model, asked, work_of(asked, length, examples))


def test_the_methods_are_those_of_the_objectives_with_what_they_say_of_themselves() -> None:
    assert set(METHODS) == set(discover())
    for name, cls in discover().items():
        objective, method = cls(), METHODS[name]
        assert (method.examples, method.scores, method.mismatched) == (
            cls.examples,
            cls.reads == "scores",
            cls.mismatches,
        )
        assert method.reference == ("ref_logprobs" in objective.needs), name
        assert method.ahead == objective.looks_ahead, name
        assert method.moving == (objective.reference_every is not None), name
        if method.rollouts:
            assert (method.group, method.epochs, method.critic) == (
                objective.group_size,
                objective.rollout_epochs,
                objective.criticised,
            )


def test_limits_are_those_of_the_engine() -> None:
    assert {"cpu": logprobs.CHUNK_BYTES["cpu"], "cuda": logprobs.CHUNK_BYTES_ELSEWHERE} == memory_module.CHUNK
    assert (logprobs.FEWEST_ROWS, decoding.CACHE_TOKENS) == (memory_module.FEWEST, memory_module.CACHE_TOKENS)
    assert {"cpu": stage.MICRO_TOKENS_ON_CPU, "cuda": stage.MICRO_TOKENS} == request.MICRO_TOKENS
    assert stage.DEFAULT_EXAMPLES == request.EXAMPLES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lora", "state"), [(False, "fp32"), (True, "fp32"), (False, "8bit")])
def test_gradients_and_optimizer_are_those_of_the_real_one(lora: bool, state: str, dtype: torch.dtype) -> None:
    module = make("llama", hidden_size=128, intermediate_size=256).to(dtype)
    if lora:
        module.requires_grad_(False)
        adapters = Adapters(module)
        adapters.add("policy", LORA, seed=0)
        groups = list(adapters.parameter_groups("policy", 1e-3))
    else:
        groups = [ParameterGroup(dict(module.named_parameters()), 1e-3)]
    optimizer = Optimizer(groups, OptimSettings(state=state))
    optimizer.begin(1.0)
    for group in groups:
        for parameter in group.parameters.values():
            (parameter.float().sum()).backward()
    gradients = sum(p.grad.nbytes for p in optimizer._trained.values() if p.grad is not None)
    optimizer.step()
    stored = {p.data_ptr() for p in module.parameters()}
    kept = {name: value for name, value in optimizer.state().items() if not name.startswith("step.")}
    held = sum(value.nbytes for value in kept.values() if value.data_ptr() not in stored)
    asked = setting(
        adapter=LORA if lora else None,
        base="bf16" if dtype == torch.bfloat16 else "fp32",
        device="cpu",
        eight_bit=state == "8bit",
    )
    row = Row(1, (1,), 1)
    found = predict(architecture(module.config.to_dict(), "tiny"), asked, Work.of_steps([[[row], [row]]], 1), process=0)
    assert found.terms["gradients"] == gradients
    # Moments of small tensors, of which a model has few, stay in float32.
    assert found.terms["optimizer"] == (held if state == "fp32" else pytest.approx(held, rel=0.1))


def test_a_cache_holds_a_key_and_a_value_for_each_layer_and_token() -> None:
    asked = setting("grpo", new_tokens=1000, checkpointing=True, micro_tokens=256)
    model = architecture(QWEN3_06B, "config.json")
    row = Row(1, (1,) * 8, 8)
    work = Work.of_steps([[[row]]], 1, prompts=2, prompt=100)
    found = predict(model, asked, work)
    assert found.moment == "writing completions"
    # 2 prompts of 100 tokens, 8 completions of 1,000 each, whose last token nothing attends to; 28 layers, 8 heads of
    # 128, two bytes, key and value
    assert found.terms["KV cache"] == 2 * (100 + 8 * 999) * 28 * 2 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("method", "way", "low", "high"),
    [
        # 2 + 4 + 4 + 8 bytes a weight, for bf16 weights keep float32 masters: 121 GB, and what a row needs
        ("sft", "full", 121, 124),
        ("dpo", "full", 121, 124),
        ("sft", "LoRA", 14.3, 16.0),
        ("dpo", "LoRA", 14.5, 16.5),
        ("sft", "QLoRA", 5.0, 6.2),
        ("kto", "QLoRA", 5.0, 6.7),
        ("dpo", "QLoRA", 5.2, 6.7),
        ("ppo", "LoRA", 15.5, 18.0),
        ("ppo", "QLoRA", 5.9, 8.5),
        ("ppo", "full", 240, 275),
    ],
)
def test_a_7b_model_needs_what_is_known_of_it(method: str, way: str, low: float, high: float, tmp_path: Path) -> None:
    question = Question(write(tmp_path, LLAMA_7B), "sft", LORA, None, True, 1024, 1, None, 128)
    found = {(name, how): plan.memory.total / 1e9 for name, how, plan in table(question, None)}
    assert low < found[method, way] < high


@settings(max_examples=40)
@given(
    method=st.sampled_from(sorted(METHODS)),
    base=st.sampled_from(["fp32", "bf16"]),
    adapter=st.sampled_from([None, LORA, QLORA]),
    again=st.booleans(),
    gib=st.integers(4, 200),
    examples=st.integers(1, 16),
)
def test_the_change_proposed_really_fits(
    method: str, base: str, adapter: AdapterSettings | None, again: bool, gib: int, examples: int
) -> None:
    asked = setting(method, base=base, adapter=adapter, checkpointing=again)
    machine = Machine("a card", "cuda", gib * GIB)

    def repack(micro_tokens: int) -> Work:
        return work_of(replace(asked, micro_tokens=micro_tokens), examples=examples)

    plan = make_plan(SEVEN, asked, repack, machine)
    change = smallest_change(plan, repack)
    if change is not None:
        assert not plan.fits
        assert change.memory.total <= machine.memory
        assert not any(key.startswith("batch.examples") for key in change.keys)
    best = largest_that_fits(plan, repack)
    assert best is None or best.memory.total <= machine.memory


def test_gradients_that_are_freed_at_once_are_not_there_together() -> None:
    asked = setting(adapter=None)
    whole, freed = (predict(SEVEN, replace(asked, in_backward=now), work_of(asked)).total for now in (False, True))
    assert whole - freed > 0.9 * 4 * SEVEN.numbers


def test_more_of_anything_never_needs_less() -> None:
    base = memory(setting(checkpointing=False)).total
    assert memory(setting(checkpointing=True)).total < base
    assert memory(setting(checkpointing=False), length=2048).total > base
    assert memory(setting(checkpointing=False, adapter=AdapterSettings(rank=64))).total > base
    assert memory(setting("ppo", checkpointing=False, share_base=False)).total > base


def test_four_bits_are_proposed_last_and_as_a_recipe_takes_them() -> None:
    asked = setting("dpo")

    def repack(micro_tokens: int) -> Work:
        return work_of(replace(asked, micro_tokens=micro_tokens))

    change = smallest_change(make_plan(SEVEN, asked, repack, Machine("a card", "cuda", 8 * GIB)), repack)
    assert change is not None
    assert change.keys[-1] == "adapter.base=nf4"
    assert smallest_change(make_plan(SEVEN, asked, repack, Machine("a card", "cuda", 3 * GIB)), repack) is None


def test_a_packed_base_takes_half_a_byte_a_number_and_a_scale_and_leaves_embeddings_and_head_as_they_are() -> None:
    """Llama-2-7B: 32 layers of four matrices 4,096 × 4,096 and three 4,096 × 11,008; the rest stays in two bytes."""
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    scales = linear // 64  # a byte each, and for 256 of them a float32
    expected = linear // 2 + scales + scales // 256 * 4 + 2 * (SEVEN.numbers - linear)
    assert memory(setting(adapter=QLORA)).terms["weights"] == pytest.approx(expected, rel=1e-3)


def test_the_heaviest_micro_batch_is_planned_for_not_the_average() -> None:
    short, long = Row(4, (4,), 4), Row(1000, (1000,), 1000)
    mixed = Work.of_steps([[[short]] * 50, [[short], [long]]], 2)
    alone = Work.of_steps([[[short], [long]]], 1)
    asked = setting(device="cpu")
    assert predict(SEVEN, asked, mixed).total == predict(SEVEN, asked, alone).total


def test_a_step_without_rows_needs_no_activations() -> None:
    found = predict(SEVEN, setting(), Work.of_steps([], 0))
    assert found.moment == "the update"
    assert "activations" not in found.terms


def test_a_processors_heap_has_holes_whether_activations_are_kept_or_computed_again() -> None:
    """Derived from the definition: 0.7 of what the layers keep of a micro-batch, 1.15 under LoRA; none on a GPU."""
    small = architecture(QWEN3_06B, "config.json")
    for adapter, share in ((None, 0.7), (LORA, 1.15)):
        asked = setting(device="cpu", base="fp32", adapter=adapter, checkpointing=False)
        kept = memory(asked, small, length=64).terms["heap"]
        assert memory(replace(asked, checkpointing=True), small, length=64).terms["heap"] == kept
        formats = Formats(4, fused_cpu=True)
        layers = sum(kept_of_layer(small, layer, adapter, formats).all for layer in range(small.layers))
        assert kept == round(share * 64 * layers)
    assert "heap" not in memory(setting(device="cuda")).terms


def test_tensors_that_are_mapped_by_themselves_leave_no_holes() -> None:
    """At 4,096 tokens a tensor of Llama's width takes 64 MiB, twice what glibc packs into its heap."""
    asked = setting(device="cpu", base="fp32", checkpointing=False)
    assert "heap" not in memory(asked, SEVEN, length=4096).terms
    assert memory(asked, SEVEN, length=128).terms["heap"] == MOST_HEAP
