"""Laws of several adapters over one model."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lora_models import FAMILIES, TOKENS, logits, loss, stir, tiny
from torch import nn

from truing.core.errors import AdapterError
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings

SMALL = AdapterSettings(rank=4)


def gradients(adapters: Adapters, name: str) -> dict[str, torch.Tensor]:
    return {key: p.grad.clone() for key, p in adapters.parameters(name).items() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_that_are_off_or_new_leave_the_bits_of_the_model(family: str) -> None:
    model = tiny(family)
    before = logits(model)
    adapters = Adapters(model)
    adapters.add("policy", SMALL, seed=0)
    assert torch.equal(logits(model), before)
    adapters.switch("policy")
    assert torch.equal(logits(model), before)
    assert torch.equal(model(input_ids=TOKENS).logits, before)
    stir(adapters, "policy")
    assert not torch.allclose(logits(model), before, atol=1e-3)
    with adapters.use(None):
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_unloading_puts_the_plain_model_back(family: str) -> None:
    model = tiny(family)
    before, types, trainable = (
        logits(model),
        [type(m) for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )
    adapters = Adapters(model)
    adapters.add("policy", SMALL, seed=0)
    adapters.switch("policy")
    stir(adapters, "policy")
    adapters.unload()
    assert [type(m) for m in model.modules()] == types
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert torch.equal(logits(model), before)
    assert adapters.names == ()


def test_two_adapters_do_not_leak_into_one_another() -> None:
    alone = {}
    for seed, name in enumerate(("policy", "value")):
        model = tiny("llama")
        adapters = Adapters(model)
        adapters.add(name, SMALL, seed=seed)
        stir(adapters, name, seed=seed)
        adapters.switch(name)
        alone[name] = logits(model)
    model = tiny("llama")
    adapters = Adapters(model)
    for seed, name in enumerate(alone):
        adapters.add(name, SMALL, seed=seed)
        stir(adapters, name, seed=seed)
    for name, expected in alone.items():
        with adapters.use(name):
            assert torch.equal(logits(model), expected)
    with adapters.use("policy"):
        loss(model).backward()
    assert len(gradients(adapters, "policy")) == 28
    assert gradients(adapters, "value") == {}


def test_only_parameters_of_trainable_adapters_require_gradients() -> None:
    model = tiny("qwen2")
    adapters = Adapters(model)
    adapters.add("policy", SMALL, seed=0)
    adapters.add("reward", SMALL, seed=1)
    adapters.set_trainable("reward", False)
    required = {id(p) for p in model.parameters() if p.requires_grad}
    assert required == {id(p) for p in adapters.parameters("policy").values()}


def test_using_returns_to_the_adapter_that_was_active_even_after_an_error() -> None:
    adapters = Adapters(tiny("llama"))
    adapters.add("policy", SMALL, seed=0)
    adapters.switch("policy")
    with pytest.raises(KeyError), adapters.use(None):
        raise KeyError
    assert adapters.active == "policy"


def test_a_frozen_copy_stays_where_it_is_while_the_policy_trains() -> None:
    model = tiny("llama")
    adapters = Adapters(model)
    adapters.add("policy", SMALL.model_copy(update={"modules_to_save": ("lm_head",)}), seed=0)
    stir(adapters, "policy")
    adapters.copy("policy", "reference")
    with adapters.use("policy"):
        start = logits(model)
    optimizer = torch.optim.SGD(adapters.parameters("policy").values(), lr=0.1)
    for _ in range(2):
        with adapters.use("policy"):
            loss(model).backward()
        optimizer.step()
    with adapters.use("policy"):
        assert not torch.allclose(logits(model), start, atol=1e-3)
    with adapters.use("reference"):
        assert torch.equal(logits(model), start)
    assert not any(p.requires_grad for p in adapters.parameters("reference").values())


def test_gradient_checkpointing_does_not_change_the_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        model = tiny("llama").train()
        adapters = Adapters(model)
        adapters.add("policy", SMALL, seed=0)
        adapters.add("value", SMALL, seed=1)
        stir(adapters, "policy")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": adapters.checkpoint_contexts})
        with adapters.use("policy"):
            value = loss(model)
        # Another adapter is active when the backward pass computes the blocks again.
        with adapters.use("value"):
            value.backward()
        found.append(gradients(adapters, "policy"))
        assert gradients(adapters, "value") == {}
    assert len(found[0]) == 28
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_gradients_in_the_model_are_those_of_finite_differences() -> None:
    model = tiny("gpt2", dtype=torch.float64)
    adapters = Adapters(model)
    adapters.add("policy", SMALL, seed=0)
    stir(adapters, "policy")
    adapters.switch("policy")
    loss(model).backward()
    for key, parameter in adapters.parameters("policy").items():
        flat, at = parameter.data.view(-1), parameter.numel() // 2
        ends = []
        for step in (1e-5, -2e-5):
            flat[at] += step
            with torch.no_grad():
                ends.append(float(loss(model)))
        flat[at] += 1e-5
        assert parameter.grad is not None
        assert float(parameter.grad.view(-1)[at]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7), key


def test_saved_modules_come_and_go_with_their_adapter() -> None:
    model = tiny("llama")
    before, base_head = logits(model), model.lm_head
    adapters = Adapters(model)
    adapters.add("policy", SMALL.model_copy(update={"modules_to_save": ("lm_head", "model.norm")}), seed=0)
    assert model.lm_head is base_head
    adapters.switch("policy")
    assert torch.equal(logits(model), before)
    assert model.get_output_embeddings().weight is adapters.parameters("policy")["lm_head.weight"]
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert torch.allclose(logits(model), 2 * before, atol=1e-5)
    loss(model).backward()
    assert adapters.parameters("policy")["model.norm.weight"].grad is not None
    with adapters.use(None):
        assert model.lm_head is base_head
        assert torch.equal(logits(model), before)
    adapters.remove("policy")
    assert model.lm_head is base_head


def test_a_saved_module_is_copied_without_the_adapters_of_others() -> None:
    model = tiny("llama")
    before = logits(model)
    adapters = Adapters(model)
    adapters.add("policy", SMALL, seed=0)
    stir(adapters, "policy")
    settings = AdapterSettings(rank=2, targets="q_proj", modules_to_save=("layers.0.mlp", "layers.1.mlp.up_proj"))
    adapters.switch("policy")
    adapters.add("value", settings, seed=0)
    with adapters.use("value"):
        assert torch.equal(logits(model), before)
    saved = adapters.saved_modules("value")
    assert list(saved) == ["model.layers.0.mlp", "model.layers.1.mlp.up_proj"]
    assert {type(m) for m in saved["model.layers.0.mlp"].children()} <= {
        nn.Linear,
        nn.SiLU,
        type(model.model.layers[0].mlp.act_fn),
    }
    assert len(adapters.layers("policy")) == 14


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "variant", [{}, {"dora": True}, {"rslora": True}, {"init": "pissa"}, {"modules_to_save": ("lm_head",)}]
)
def test_merging_keeps_the_outputs_of_the_adapter(family: str, variant: dict) -> None:
    model = tiny(family)
    before = logits(model)
    adapters = Adapters(model)
    adapters.add("policy", AdapterSettings(rank=4, **variant), seed=0)
    stir(adapters, "policy", size=0.1)
    with adapters.use("policy"):
        adapted = logits(model)
    adapters.merge("policy")
    adapters.unload()
    assert (adapted - before).abs().max() > 0.1
    torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=0)


def test_a_merged_head_of_a_tied_model_survives_saving(tmp_path) -> None:
    model = tiny("llama", tied=True)
    adapters = Adapters(model)
    summary = adapters.add("policy", SMALL.model_copy(update={"modules_to_save": ("lm_head",)}), seed=0)
    assert any("shares its weight" in note for note in summary.notes)
    stir(adapters, "policy")
    adapters.merge("policy")
    adapters.unload()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(again), logits(model), atol=1e-6, rtol=0)


def test_merging_is_refused_under_other_adapters() -> None:
    adapters = Adapters(tiny("llama"))
    adapters.add("policy", SMALL, seed=0)
    adapters.copy("policy", "reference")
    with pytest.raises(AdapterError, match="reference"):
        adapters.merge("policy")


def test_a_seed_decides_the_start_and_leaves_the_global_state_alone() -> None:
    starts = []
    state = torch.get_rng_state()
    for seed in (5, 5, 6):
        adapters = Adapters(tiny("llama"))
        adapters.add("policy", SMALL, seed=seed)
        starts.append(adapters.parameters("policy")["model.layers.0.self_attn.q_proj.lora_A.weight"])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert starts[0].abs().max() <= 24**-0.5
    assert float(starts[0].std()) == pytest.approx((24 * 3) ** -0.5, rel=0.15)  # of a uniform law


def test_b_learns_faster_by_the_ratio() -> None:
    adapters = Adapters(tiny("llama"))
    adapters.add("policy", AdapterSettings(rank=4, lr_ratio=16, dora=True, modules_to_save=("lm_head",)), seed=0)
    slow, fast = adapters.parameter_groups("policy", 1e-3)
    assert (slow.lr, fast.lr) == (1e-3, 1.6e-2)
    assert all(key.endswith("lora_B.weight") for key in fast.parameters)
    assert len(fast.parameters) == 14
    assert slow.parameters.keys() | fast.parameters.keys() == adapters.parameters("policy").keys()
    assert not slow.parameters.keys() & fast.parameters.keys()
    adapters.add("plain", SMALL, seed=0)
    assert [group.lr for group in adapters.parameter_groups("plain", 1e-3)] == [1e-3]


def test_names_that_do_not_exist_or_exist_already_are_refused() -> None:
    adapters = Adapters(tiny("llama"))
    adapters.add("policy", SMALL, seed=0)
    for attempt in (
        partial(adapters.switch, "polcy"),
        partial(adapters.remove, "polcy"),
        partial(adapters.copy, "polcy", "x"),
    ):
        with pytest.raises(AdapterError, match="did you mean 'policy'"):
            attempt()
    for name in ("policy", "a.b", "", "values"):
        with pytest.raises(AdapterError, match="name"):
            adapters.add(name, SMALL, seed=0)
    with pytest.raises(AdapterError, match="already has adapters"):
        Adapters(adapters.model)


def test_a_rank_beyond_the_layers_is_noted_and_works() -> None:
    model = tiny("llama")
    before = logits(model)
    for init in ("default", "pissa"):
        adapters = Adapters(model)
        summary = adapters.add("policy", AdapterSettings(rank=30, init=init), seed=0)
        assert any("rank 30" in note for note in summary.notes)
        with adapters.use("policy"):
            assert torch.equal(logits(model), before)
        adapters.unload()


def test_adapter_dropout_is_turned_on_without_the_mode_of_the_model() -> None:
    model = tiny("llama")
    adapters = Adapters(model)
    adapters.add("policy", AdapterSettings(rank=4, dropout=0.5), seed=0)
    stir(adapters, "policy")
    adapters.copy("policy", "reference")
    adapters.switch("policy")
    steady = logits(model)
    adapters.train_layers()
    assert not model.training
    assert not torch.equal(logits(model), logits(model))
    with adapters.use("reference"):
        assert torch.equal(logits(model), steady)
    adapters.train_layers(False)
    assert torch.equal(logits(model), steady)


def test_training_a_whole_module_in_a_narrow_type_is_noted() -> None:
    adapters = Adapters(tiny("llama", dtype=torch.bfloat16))
    summary = adapters.add("policy", AdapterSettings(rank=4, modules_to_save=("lm_head",)), seed=0)
    assert summary.notes == ("'lm_head' is trained whole in torch.bfloat16, where small updates are lost to rounding",)
    assert summary.parameters == sum(p.numel() for p in adapters.parameters("policy").values())


def test_a_merged_module_stays_when_later_adapters_come_and_go() -> None:
    model = tiny("llama")
    adapters = Adapters(model)
    adapters.add("policy", SMALL.model_copy(update={"modules_to_save": ("lm_head",)}), seed=0)
    stir(adapters, "policy")
    with adapters.use("policy"):
        adapted = logits(model)
    adapters.merge("policy")
    adapters.add("next", SMALL, seed=0)
    for name in ("next", None):
        adapters.switch(name)
        torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=0)


def test_saved_modules_of_two_adapters_are_exchanged() -> None:
    model = tiny("llama")
    adapters = Adapters(model)
    heads = {None: model.lm_head}
    for name in ("policy", "value"):
        adapters.add(name, SMALL.model_copy(update={"modules_to_save": ("lm_head",)}), seed=0)
        heads[name] = adapters.saved_modules(name)["lm_head"]
    for name in ("policy", "value", "policy", None, "value", None):
        adapters.switch(name)
        assert model.lm_head is heads[name]
