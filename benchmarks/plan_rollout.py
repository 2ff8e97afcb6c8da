"""Planned memory of a rollout beside the bytes that are live while completions are written, on a CPU.

python benchmarks/plan_rollout.py

Models have random weights; what is counted is what an allocator is asked for, beside the weights.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import comparison
from live_bytes import LiveBytes
from truing.models.decoding import Choice, write
from truing.models.language_model import LanguageModel
from truing.planner.architecture import architecture
from truing.planner.memory import rollout_terms
from truing.planner.methods import METHODS
from truing.planner.setting import Setting, Work

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "eos_token_id": 0,
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One rollout."""

    prompts: int
    prompt: int
    group: int
    new_tokens: int
    vocabulary: int
    family: str = "llama"
    dtype: str = "fp32"

    @property
    def name(self) -> str:
        return (
            f"{self.family} {self.dtype}, vocabulary {self.vocabulary:,}, {self.prompts} prompts of {self.prompt}, "
            f"{self.group} × {self.new_tokens}"
        )


def cells() -> list[Cell]:
    """Short and long prompts, one and many completions, small and large vocabularies."""
    grid = itertools.product((1, 8), (32, 512), (1, 8), (8, 48), (4_096, 32_768))
    found = [Cell(*each) for each in grid]
    found += [Cell(4, 128, 8, 16, 16_384, family) for family in ("qwen3", "gemma3_text")]
    return [*found, Cell(8, 512, 8, 16, 16_384, dtype="bf16"), Cell(16, 1024, 8, 16, 4_096)]


def live(cell: Cell) -> int:
    config = AutoConfig.for_model(cell.family, **SHAPE, vocab_size=cell.vocabulary)
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config).eval()
    module.to(torch.bfloat16 if cell.dtype == "bf16" else torch.float32)
    prompts = torch.randint(1, cell.vocabulary, (cell.prompts, cell.prompt)).tolist()
    counted = LiveBytes([*module.parameters(), *module.buffers()])
    with counted:
        write(
            LanguageModel(module),
            prompts,
            count=cell.group,
            max_new_tokens=cell.new_tokens,
            choice=Choice(),
            seed=0,
            end_tokens=(),
        )
    return counted.peak


def planned(cell: Cell) -> dict[str, int]:
    config = {"model_type": cell.family, **SHAPE, "vocab_size": cell.vocabulary}
    method, base = replace(METHODS["grpo"], group=cell.group), "bf16" if cell.dtype == "bf16" else "fp32"
    setting = Setting("grpo", method, None, base, "cpu", new_tokens=cell.new_tokens)
    work = Work((), 1, 0, 0, 0, 1, prompts=cell.prompts, prompt=cell.prompt)
    terms = rollout_terms(architecture(config, cell.family), setting, work)
    return {name: value for name, value in terms.items() if name != "gradients"}


def main() -> None:
    lines, errors, rows = ["| rollout | planned | live | error |", "|---|---|---|---|"], [], []
    for cell in cells():
        found, terms = live(cell), planned(cell)
        whole = sum(terms.values())
        errors.append(whole / found - 1)
        lines.append(f"| {cell.name} | {whole / 1e6:.1f} MB | {found / 1e6:.1f} MB | {errors[-1]:+.1%} |")
        rows.append({"rollout": cell.name, "planned": whole, "live": found, "terms": terms})
        print(lines[-1], {name: round(value / 1e6, 1) for name, value in terms.items()}, flush=True)
    verdict = f"{len(errors)} rollouts: median error {statistics.median(map(abs, errors)):.1%}, most over "
    verdict += f"{max(errors):+.1%}, most under {min(errors):+.1%}."
    print(verdict)
    comparison.write_table(
        "plan_rollout", "Planned memory of rollouts beside live bytes", [verdict, "\n".join(lines)], rows
    )


if __name__ == "__main__":
    main()
