"""A base in four bits: what is stored, what is computed with it and its gradient, and what adapters do over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from pydantic import ValidationError
from scipy.stats import norm
from tests.models.families import FAMILIES as SHAPES
from tests.models.families import make
from tests.models.lora_models import FAMILIES, logits, loss, stir, tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from truing.core import extras
from truing.core.errors import RecipeError
from truing.models import nf4
from truing.models.lora.adapters import Adapters
from truing.models.lora.layers import FusedProduct, turned
from truing.models.lora.merge import merge_adapter
from truing.models.lora.settings import AdapterSettings
from truing.models.nf4 import PackedLinear, PackedWeight, linear, quantisation, stored_bytes, take_over, unpack

Packer = Callable[[PreTrainedModel], PreTrainedModel]


@pytest.fixture
def packer(tmp_path: Path) -> Packer:
    """Save a model and load it packed, as training does."""

    def packed(model: PreTrainedModel) -> PreTrainedModel:
        model.save_pretrained(tmp_path / "model")
        found = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", quantization_config=quantisation(), device_map={"": "cpu"}
        )
        take_over(found)
        return found

    return packed


def packed_weight(matrix: Tensor) -> PackedWeight:
    return PackedWeight(*quantize_4bit(matrix, blocksize=64, compress_statistics=True, quant_type="nf4"), turned=False)


def levels() -> np.ndarray:
    """The 16 levels of the paper (section 3, equation 4): quantiles of N(0, 1), eight of each sign with zero twice."""
    least = 1 - (1 / 32 + 1 / 30) / 2
    above, below = norm.ppf(np.linspace(least, 0.5, 9)), -norm.ppf(np.linspace(least, 0.5, 8))
    found = np.unique(np.concatenate([above, below]).round(12))
    return np.asarray(found / np.abs(found).max(), dtype=np.float64)


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.asarray(table[np.abs(values[..., None] - table).argmin(-1)])


def blocks(flat: np.ndarray, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, len(flat), size))


@pytest.mark.parametrize("shape", [(24, 64), (40, 24), (300, 128), (5, 13), (1, 1)], ids=str)
def test_what_is_unpacked_is_the_papers_double_quantisation(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05
    weight = packed_weight(matrix)
    flat = matrix.double().numpy().ravel()
    scales = np.array([np.abs(flat[block]).max() for block in blocks(flat, 64)])
    # The scales less their mean, in 8 bits, blocks of 256; the table of 8-bit numbers is bitsandbytes' own.
    table = weight.state.state2.code.double().numpy()
    assert len(table) == 256
    centred = scales - scales.mean()
    stored = np.empty_like(scales)
    for block in blocks(scales, 256):
        largest = np.abs(centred[block]).max() or 1.0
        stored[block] = nearest(centred[block] / largest, table) * largest + scales.mean()
    expected = np.concatenate(
        [nearest(flat[block] / scales[i], levels()) * stored[i] for i, block in enumerate(blocks(flat, 64))]
    ).reshape(shape)
    found = weight.unpacked()
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), expected, atol=2e-7, rtol=1e-5)
    assert weight.shape == shape
    assert weight.packed.nbytes == -(-flat.size // 2)


def test_a_block_of_zeros_stays_zero() -> None:
    assert not packed_weight(torch.zeros(8, 64)).unpacked().any()


@pytest.mark.parametrize("adapted", [True, False], ids=["adapter", "base"])
def test_products_and_gradients_are_those_of_the_unpacked_weight_in_float64(adapted: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = packed_weight(torch.randn(20, 32, generator=generator))
    x, bias, grad = (torch.randn(size, generator=generator) for size in ((7, 32), (20,), (7, 20)))
    lora_a, lora_b = torch.randn(3, 32, generator=generator), torch.randn(20, 3, generator=generator)

    def inputs(dtype: torch.dtype) -> list[Tensor]:
        parts = (x, bias, lora_a, lora_b) if adapted else (x, bias)
        return [part.to(dtype, copy=True).requires_grad_() for part in parts]

    own = inputs(torch.float32)
    out = FusedProduct.apply(own[0], weight, own[1], *own[2:], 0.5) if adapted else linear(own[0], weight, own[1])
    exact = inputs(torch.float64)
    reference = exact[0] @ weight.unpacked().double().T + exact[1]
    if adapted:
        reference = reference + 0.5 * (exact[0] @ exact[2].T) @ exact[3].T
    assert torch.allclose(out.double(), reference, atol=1e-5)
    found = torch.autograd.grad(out, own, grad)
    expected = torch.autograd.grad(reference, exact, grad.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours.double(), theirs, atol=1e-4)


@pytest.mark.parametrize("adapted", [True, False], ids=["adapter", "base"])
def test_nothing_as_large_as_the_weight_is_kept_for_the_backward_pass(adapted: bool) -> None:
    weight = packed_weight(torch.randn(64, 64))
    x = torch.randn(2, 64, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    lora = torch.randn(1, 64, requires_grad=True), torch.randn(64, 1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = FusedProduct.apply(x, weight, None, *lora, 1.0) if adapted else linear(x, weight, None)
    out.sum().backward()
    assert x.grad is not None
    assert all(tensor.numel() < 64 * 64 for tensor in kept)


@pytest.mark.parametrize("family", SHAPES)
def test_of_every_family_only_linear_layers_of_the_body_are_packed(family: str, packer: Packer) -> None:
    model = packer(make(family))
    packed = {path for path, part in model.named_modules() if isinstance(part, PackedLinear)}
    assert packed
    body = next(path for path, part in model.named_modules() if part is model.base_model)
    assert all(path.startswith(f"{body}.") for path in packed)
    left = {path for path, part in model.base_model.named_modules() if isinstance(part, nn.Linear)}
    assert not left
    assert model.get_output_embeddings().weight.dtype == torch.float32
    assert "quantization_config" not in model.config.to_dict()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_computes_over_a_packed_base_what_it_does_over_the_same_numbers(
    family: str, dora: bool, packer: Packer
) -> None:
    figures = []
    for plain in (False, True):
        model = packer(tiny(family))
        if plain:
            unpack(model)
            assert not any(isinstance(part, PackedLinear) for part in model.modules())
        adapters = Adapters(model)
        adapters.add("policy", AdapterSettings(rank=3, dora=dora), seed=0)
        stir(adapters, "policy")
        adapters.switch("policy")
        loss(model).backward()
        gradients = [parameter.grad for parameter in adapters.parameters("policy").values()]
        figures.append([logits(model), *gradients])
    assert len(figures[0]) > 10
    for packed, same in zip(*figures, strict=True):
        assert torch.allclose(packed, same, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_gives_a_model_of_its_own_kind_that_answers_the_same(
    family: str, packer: Packer, tmp_path: Path
) -> None:
    model = packer(tiny(family))
    adapters = Adapters(model)
    adapters.add("policy", AdapterSettings(rank=3, targets="re:.*(q_proj|c_attn)"), seed=0)
    stir(adapters, "policy")
    adapters.switch("policy")
    before = logits(model)
    path = next(iter(adapters.layers("policy")))
    assert turned(model.get_submodule(path)) == (family == "gpt2")
    report = merge_adapter(adapters, "policy", [[3, 14, 15, 9], [2]])
    assert report.largest_difference < 1e-4 < report.effect
    adapters.unload()
    model.save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged) is type(tiny(family))
    assert torch.allclose(logits(merged), before, atol=1e-5)


def test_a_module_trained_whole_is_no_longer_packed(packer: Packer) -> None:
    adapters = Adapters(packer(tiny("llama")))
    adapters.add("policy", AdapterSettings(rank=2, targets="q_proj", modules_to_save=("1.mlp",)), seed=0)
    (own,) = adapters.saved_modules("policy").values()
    assert sum(isinstance(part, nn.Linear) for part in own.children()) == 3
    before = logits(adapters.model)
    adapters.switch("policy")
    assert torch.allclose(logits(adapters.model), before, atol=1e-5)
    assert any(path.endswith("down_proj.weight") for path in adapters.parameters("policy"))


def test_a_frozen_copy_shares_the_packed_weight(packer: Packer) -> None:
    adapters = Adapters(packer(tiny("llama")))
    held = stored_bytes(adapters.model)
    adapters.add("policy", AdapterSettings(rank=1), seed=0)
    adapters.copy("policy", "reference")
    assert stored_bytes(adapters.model) - held == 2 * 4 * sum(p.numel() for p in adapters.parameters("policy").values())


def test_a_packed_number_takes_what_the_plan_counts() -> None:
    weight = packed_weight(torch.randn(1024, 1024))
    assert weight.nbytes / 2**20 == pytest.approx(0.516, abs=5e-4)


@pytest.mark.parametrize(
    ("more", "words"),
    [({"init": "pissa"}, "init: pissa over base: nf4"), ({"between_stages": "merge"}, "cannot write into base: nf4")],
)
def test_what_four_bits_make_senseless_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AdapterSettings(base="nf4", **more)
    AdapterSettings(base="nf4", rslora=True, dora=True)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(RecipeError, match=r"bitsandbytes.*pip install 'truing\[qlora\]'"):
        nf4.check_installed()
