"""Predicted memory of a 7B model beside a step of it under fake tensors, whose live bytes are counted.

python benchmarks/plan_fake.py

The step is the one that training makes: tree attention, fused LoRA, chunked log-probs, float32 masters. Nothing is
computed and no memory is used; bytes are counted as an allocator would be asked for them. A build without CUDA cannot
index fake tensors of a GPU, so that "cuda" stands for fake CPU tensors on the path that a GPU takes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

import comparison
from live_bytes import LiveBytes
from truing.core.batch import Batch
from truing.core.parameters import ParameterGroup
from truing.core.trees import Completion, Tree
from truing.models import attention, logprobs
from truing.models.language_model import LanguageModel
from truing.models.loading import disable_dropout
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import architecture
from truing.planner.memory import CHUNK, predict
from truing.planner.methods import METHODS
from truing.planner.setting import DeviceKind, Row, Setting, Work
from truing.training.optimizer import Optimizer
from truing.training.settings import OptimSettings

SHAPES: dict[str, dict[str, Any]] = {
    "Llama-2-7B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "Qwen3-8B": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
    },
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One step."""

    shape: str
    device: DeviceKind
    adapter: str
    pair: bool
    length: int
    checkpointing: bool

    @property
    def name(self) -> str:
        data = "a pair" if self.pair else "a row"
        again = ", checkpointing" if self.checkpointing else ""
        return f"{self.shape}, {self.adapter}, {data} of {self.length}{again}, {self.device}"


def cells() -> list[Cell]:
    return [
        Cell(shape, device, adapter, pair, length, again)
        for shape, device, adapter, (pair, length), again in itertools.product(
            SHAPES, ("cuda", "cpu"), ("full", "LoRA"), ((False, 1024), (True, 4096)), (False, True)
        )
        if shape.startswith("Llama") or (device == "cuda" and again)
    ]


def tree(pair: bool, length: int) -> Tree:
    half = length // 2
    completion = Completion(np.ones(half, dtype=np.int32), np.ones(half, dtype=np.bool_))
    pairs = ((0, 1),) if pair else ()
    return Tree(np.ones(half, dtype=np.int32), (completion,) * (1 + pair), pairs)


@contextmanager
def path_of(device: DeviceKind) -> Iterator[None]:
    """Take the attention and the chunks of another device."""
    if device == "cpu":
        yield
        return
    fused, bias = attention._FlashTrees.apply, attention.causal_lower_right
    attention._FlashTrees.apply = lambda *inputs: attention.fused_trees(*inputs, 0.0)
    attention.causal_lower_right = lambda rows, columns: None  # a GPU's kernel takes it as a flag, not as a mask
    logprobs.CHUNK_BYTES["cpu"] = logprobs.CHUNK_BYTES_ELSEWHERE
    try:
        yield
    finally:
        attention._FlashTrees.apply, attention.causal_lower_right = fused, bias
        logprobs.CHUNK_BYTES["cpu"] = CHUNK["cpu"]


def counted(cell: Cell) -> tuple[int, int]:
    """Bytes at most while a second step is made, without and with what lasts."""
    config = AutoConfig.for_model(**SHAPES[cell.shape])
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), path_of(cell.device):
        module.to_empty(device="cpu")
        disable_dropout(module)
        module.eval()
        adapters = None
        if cell.adapter == "LoRA":
            module.requires_grad_(False)
            adapters = Adapters(module)
            adapters.add("policy", AdapterSettings(), seed=0)
            adapters.switch("policy")
        model = LanguageModel(module)
        if cell.checkpointing:
            model.enable_checkpointing(adapters.checkpoint_contexts if adapters is not None else None)
        groups = (
            list(adapters.parameter_groups("policy", 1e-4))
            if adapters is not None
            else [ParameterGroup(dict(module.named_parameters()), 1e-4)]
        )
        optimizer = Optimizer(groups, OptimSettings())
        lasting = {p.untyped_storage(): p.untyped_storage().nbytes() for p in module.parameters()}
        lasting |= {p.untyped_storage(): p.untyped_storage().nbytes() for p in optimizer.weights().values()}
        batch: Batch = model.collate([tree(cell.pair, cell.length)])
        live = LiveBytes([*module.parameters(), *module.buffers(), *optimizer.weights().values()])
        with live:
            model.outputs(batch).logprobs.sum().backward()
    moments = 8 * optimizer.parameter_count
    return live.peak, live.peak + sum(lasting.values()) + moments


def predicted(cell: Cell) -> int:
    model = architecture(SHAPES[cell.shape], cell.shape)
    half = cell.length // 2
    row = Row(half, (half,) * (1 + cell.pair), half * (1 + cell.pair))
    setting = Setting(
        "dpo" if cell.pair else "sft",
        METHODS["dpo" if cell.pair else "sft"],
        AdapterSettings() if cell.adapter == "LoRA" else None,
        "bf16",
        cell.device,
        cell.checkpointing,
    )
    memory = predict(model, setting, Work.of_steps([[[row]]], 2), process=0)
    return memory.total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name has this in it; writes no results")
    parser.add_argument("--layers", type=int, help="fewer layers, for a quick look; writes no results")
    chosen = parser.parse_args()
    if chosen.layers:
        for shape in SHAPES.values():
            shape["num_hidden_layers"] = chosen.layers
    lines = ["| step | predicted | counted | error |", "|---|---|---|---|"]
    rows, errors = [], []
    for cell in cells():
        if chosen.only not in cell.name:
            continue
        whole = counted(cell)[1]
        said = predicted(cell)
        errors.append(said / whole - 1)
        lines.append(f"| {cell.name} | {said / 1e9:.2f} GB | {whole / 1e9:.2f} GB | {errors[-1]:+.1%} |")
        rows.append({"step": cell.name, "predicted": said, "counted": whole})
        print(lines[-1], flush=True)
    verdict = (
        f"{len(errors)} steps: median error {statistics.median(map(abs, errors)):.1%}, most over "
        f"{max(errors):+.1%}, most under {min(errors):+.1%}."
    )
    print(verdict)
    if not chosen.only and not chosen.layers:
        comparison.write_table("plan_fake", "Planned memory beside simulated steps", [verdict, "\n".join(lines)], rows)


if __name__ == "__main__":
    main()
