"""Predicted memory beside the peak of real runs on this CPU, each in a process of its own.

python benchmarks/plan_cpu.py

Models are made from configurations with random weights, rows of words with exact lengths; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comparison

METHODS = ("sft", "dpo", "kto", "reward", "ppo")
SHAPE = (512, 1280, 6, 8, 4)
"""Width, feed-forward, layers, heads, key heads."""

ADAPTERS = {"none": "none", "lora": {"use": "lora", "rank": 16}, "qlora": {"use": "lora", "rank": 16, "base": "nf4"}}

DEVICE = "cpu"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    method: str
    adapter: str
    length: int
    vocabulary: int
    checkpointing: bool
    dtype: str = "fp32"
    family: str = "llama"
    tokens: int = 1024

    @property
    def name(self) -> str:
        parts = (self.family, self.method, self.adapter, self.dtype, self.length, self.vocabulary)
        return "-".join(map(str, parts)) + ("-checkpointing" if self.checkpointing else "")


def cells() -> Iterator[Cell]:
    """The whole grid, and a few cells beside it: bf16, and other families."""
    for method, adapter, length, vocabulary, again in itertools.product(
        METHODS, ("none", "lora"), (256, 1024), (4_096, 32_768), (False, True)
    ):
        yield Cell(method, adapter, length, vocabulary, again)
    for method, adapter in itertools.product(("sft", "dpo"), ("none", "lora")):
        yield Cell(method, adapter, 2048, 16_384, False, tokens=2048)
        yield Cell(method, adapter, 512, 16_384, False, "bf16")
        yield Cell(method, adapter, 512, 16_384, True, "bf16")
        yield Cell(method, adapter, 512, 16_384, False, family="gpt2")
        yield Cell(method, adapter, 512, 16_384, False, family="qwen3")
    for method, again in itertools.product(("sft", "dpo", "ppo"), (False, True)):
        yield Cell(method, "qlora", 512, 16_384, again, "bf16")


def write_model(folder: Path, cell: Cell) -> None:
    """A model with random weights and a tokenizer of as many words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(cell.vocabulary - 2)}
    tokenizer = Tokenizer(models.WordLevel({**words, "<s>": len(words), "</s>": len(words) + 1}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    width, feed, layers, heads, keys = SHAPE
    shape: dict[str, Any] = {"vocab_size": cell.vocabulary, "eos_token_id": cell.vocabulary - 1, "bos_token_id": None}
    if cell.family == "gpt2":
        shape |= {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 4096}
    else:
        shape |= {"hidden_size": width, "intermediate_size": feed, "num_hidden_layers": layers}
        shape |= {"num_attention_heads": heads, "num_key_value_heads": keys, "max_position_embeddings": 4096}
        shape |= {"tie_word_embeddings": True, "head_dim": width // heads}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(cell.family, **shape))
    model.to(torch.bfloat16 if cell.dtype == "bf16" else torch.float32).save_pretrained(folder)


def words(count: int, seed: int) -> str:
    return " ".join(f"w{(seed * 7919 + place) % 4000}" for place in range(count))


def write_rows(file: Path, cell: Cell, count: int = 64) -> None:
    """Rows whose prompt and completion have half the length each."""
    half = cell.length // 2 - 2
    rows = []
    for number in range(count):
        row: dict[str, Any] = {"prompt": f"w{number} {words(half, number)} "}
        if cell.method in ("dpo", "reward"):
            row |= {"chosen": words(half, number + 100), "rejected": words(half, number + 200)}
        elif cell.method == "kto":
            row |= {"completion": words(half, number + 100), "label": number % 2 == 0}
        elif cell.method == "sft":
            row |= {"completion": words(half, number + 100)}
        rows.append(row)
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def recipe(cell: Cell, work: Path) -> dict[str, Any]:
    rollout = {"rewards": [f"{work / 'length_reward.py'}:length"], "max_new_tokens": 64, "epochs": 1}
    return {
        "model": str(work / "model"),
        "template": "plain",
        "adapter": ADAPTERS[cell.adapter],
        "objective": {"use": cell.method},
        "data": {"path": str(work / "rows.jsonl"), "max_length": cell.length + 8},
        "batch": {"examples": 8 if cell.length < 512 else 4 if cell.length < 1024 else 2, "micro_tokens": cell.tokens},
        "precision": {"dtype": cell.dtype, "gradient_checkpointing": cell.checkpointing},
        "optim": {"max_steps": 2},
        "samples": {"count": 0},
        "device": DEVICE,
        **({"rollout": rollout} if cell.method == "ppo" else {}),
    }


@dataclass(frozen=True, slots=True)
class Found:
    """What was predicted and what was measured."""

    cell: Cell
    predicted: int
    measured: int
    moment: str
    terms: dict[str, int]

    @property
    def error(self) -> float:
        """How much the prediction is above (or below) the peak."""
        return self.predicted / self.measured - 1


def measure(cell: Cell, work: Path, command: list[str]) -> Found:
    folder = work / cell.name
    folder.mkdir(parents=True)
    write_model(folder / "model", cell)
    write_rows(folder / "rows.jsonl", cell)
    (folder / "length_reward.py").write_text(
        "def length(prompts, completions, **columns):\n    return [len(c) % 7 for c in completions]\n", encoding="utf-8"
    )
    (folder / "recipe.yaml").write_text(json.dumps(recipe(cell, folder)), encoding="utf-8")
    run = folder / "run"
    done = subprocess.run(
        [*command, "train", str(folder / "recipe.yaml"), "--output", str(run)], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{cell.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Found(cell, plan["total_bytes"], max(row["memory_bytes"] for row in rows), plan["moment"], plan["bytes"])


def table(found: list[Found]) -> str:
    lines = ["| run | predicted | measured | error | most in |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.cell.name} | {one.predicted / 1e6:,.0f} MB | {one.measured / 1e6:,.0f} MB | {one.error:+.1%} | "
        f"{one.moment} |"
        for one in found
    ]
    return "\n".join(lines)


def verdict(found: list[Found]) -> str:
    errors = [one.error for one in found]
    return (
        f"{len(found)} runs: median error {statistics.median(map(abs, errors)):.1%}, "
        f"most over {max(errors):+.1%}, most under {min(errors):+.1%}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truing", default=f"{sys.executable} -m truing")
    parser.add_argument("--every", type=int, default=1, help="run each so-manieth cell of the grid alone")
    parser.add_argument("--only", default="", help="run cells whose name has this in it, and write no results")
    chosen = parser.parse_args()
    found = []
    for cell in list(cells())[:: chosen.every]:
        if chosen.only and chosen.only not in cell.name:
            continue
        with tempfile.TemporaryDirectory() as work:
            found.append(measure(cell, Path(work), shlex.split(chosen.truing)))
        one = found[-1]
        print(f"{one.error:+7.1%}  {one.predicted / 1e6:7,.0f} {one.measured / 1e6:7,.0f} MB  {cell.name}", flush=True)
        if chosen.only:
            print(
                "         " + "  ".join(f"{name} {value / 1e6:,.0f}" for name, value in one.terms.items()), flush=True
            )
    print(verdict(found))
    if not chosen.only:
        rows = [
            {**asdict(one.cell), "predicted": one.predicted, "measured": one.measured, "terms": one.terms}
            for one in found
        ]
        comparison.write_table("plan_cpu", "Planned memory beside measured", [verdict(found), table(found)], rows)


if __name__ == "__main__":
    main()
