"""What is said to be kept against what autograd really keeps, counted tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from benchmarks.live_bytes import LiveBytes
from torch import Tensor
from transformers import PreTrainedModel

from tests.models.families import FAMILIES, make, tree
from truing.models.language_model import LanguageModel
from truing.models.loading import disable_dropout
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings
from truing.planner.activations import Formats, kept_of_layer
from truing.planner.architecture import architecture
from truing.planner.memory import predict
from truing.planner.methods import METHODS
from truing.planner.setting import Row, Setting, Work

LORA = AdapterSettings(rank=4)


@dataclass(frozen=True)
class Made:
    """A model ready to be trained."""

    module: PreTrainedModel
    model: LanguageModel


def made(family: str, layers: int, *, lora: bool, dtype: torch.dtype, again: bool = False, **changes: object) -> Made:
    shape = {"n_layer" if family == "gpt2" else "num_hidden_layers": layers, **changes}
    if "layer_types" in FAMILIES[family]:
        shape["layer_types"] = ["full_attention"] * layers
    module = make(family, **shape).to(dtype)
    disable_dropout(module)
    adapters = None
    if lora:
        module.requires_grad_(False)
        adapters = Adapters(module)
        adapters.add("policy", LORA, seed=0)
        adapters.switch("policy")
    model = LanguageModel(module)
    if again:
        model.enable_checkpointing(adapters.checkpoint_contexts if adapters is not None else None)
    return Made(module, model)


def saved_bytes(made: Made, tokens: int) -> int:
    """Bytes of all tensors that operations of a forward pass save, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in made.module.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = made.model.collate([tree(tokens // 2, tokens - tokens // 2)])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = made.model.outputs(batch)
    del outputs
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "phi3", "gemma2", "cohere2", "gpt2", "gpt_neox"])
def test_a_layer_keeps_of_each_token_what_its_operations_save(family: str, lora: bool, dtype: torch.dtype) -> None:
    # One layer more and forty tokens more: everything that is kept once, or outside the layers, cancels.
    few, many = 40, 80
    two, three = (made(family, layers, lora=lora, dtype=dtype) for layers in (2, 3))
    by_layer = [saved_bytes(three, tokens) - saved_bytes(two, tokens) for tokens in (few, many)]
    counted = (by_layer[1] - by_layer[0]) / (many - few)
    model = architecture(three.module.config.to_dict(), family)
    formats = Formats(4 if dtype == torch.float32 else 2, fused_cpu=True)
    assert kept_of_layer(model, 1, LORA if lora else None, formats).all == counted


SMALL = {"hidden_size": 128, "intermediate_size": 352, "vocab_size": 1000, "max_position_embeddings": 512}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_peak_of_a_pass_is_that_of_its_living_tensors(family: str, lora: bool, again: bool) -> None:
    changes = {"n_embd": 128, "vocab_size": 1000, "n_positions": 512} if family == "gpt2" else dict(SMALL)
    if family == "gemma2":
        changes |= {"head_dim": 32, "query_pre_attn_scalar": 32}
    one = made(family, 4, lora=lora, dtype=torch.float32, again=again, **changes)
    batch = one.model.collate([tree(100, 100)])
    live = LiveBytes([*one.module.parameters(), *one.module.buffers()])
    with live:
        one.model.outputs(batch).logprobs.sum().backward()
    setting = Setting("sft", METHODS["sft"], LORA if lora else None, "fp32", "cpu", again)
    work = Work.of_steps([[[Row(100, (100,), 100)]]], 1)
    memory = predict(architecture(one.module.config.to_dict(), family), setting, work, process=0)
    lasting = sum(memory.terms.get(name, 0) for name in ("weights", "adapters", "optimizer"))
    assert 0.96 * live.peak < memory.in_use - lasting < 1.1 * live.peak
