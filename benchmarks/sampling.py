"""Sampled tokens per second beside `generate` of transformers: same weights, same prompts, 32 rows, one process.

python benchmarks/sampling.py

Three workloads: rows that all run to the limit, each with a prompt of its own; the same with four prompts of eight rows
each, as group methods ask; and prompts of many lengths whose rows end by themselves, as trained models' do. Random
weights never end, so a set of tokens is declared to end a row that together have about one chance in 48.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import comparison
from shapes import SHAPES
from truing.core.samples import Sampled
from truing.core.trees import Completion, Tree
from truing.models.decoding import Choice
from truing.models.language_model import LanguageModel
from truing.models.sampling import sample

ROWS = 32
PROMPT = 64
NEW = 128


@dataclass(frozen=True)
class Workload:
    """Prompts, rows for each, and the tokens that end a row."""

    name: str
    prompts: list[list[int]]
    count: int
    ends: frozenset[int]


def build(shape: str, dtype: torch.dtype) -> LlamaForCausalLM:
    size = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def workloads(vocabulary: int) -> list[Workload]:
    draw = np.random.default_rng(0)

    def prompt(length: int) -> list[int]:
        return draw.integers(5, vocabulary, length).tolist()

    ends = frozenset(range(vocabulary // 48))
    return [
        Workload("32 prompts, to the limit", [prompt(PROMPT) for _ in range(ROWS)], 1, frozenset()),
        Workload("4 prompts x 8, to the limit", [prompt(PROMPT) for _ in range(4)], 8, frozenset()),
        Workload(
            "32 prompts of 16 to 128 tokens, rows end",
            [prompt(int(length)) for length in draw.integers(16, 129, ROWS)],
            1,
            ends,
        ),
        Workload("4 prompts x 8, rows end", [prompt(PROMPT) for _ in range(4)], 8, ends),
    ]


def through_transformers(module: LlamaForCausalLM, work: Workload, cache: str | None) -> int:
    """Sample as `generate` does by itself; return how many tokens were sampled up to each row's end."""
    prompts = [prompt for prompt in work.prompts for _ in range(work.count)]
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    config = GenerationConfig(
        max_new_tokens=NEW,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=0,
        eos_token_id=sorted(work.ends) or None,
        cache_implementation=cache,
        disable_compile=True,
    )
    with torch.no_grad():
        out = module.generate(input_ids=tokens, attention_mask=mask, generation_config=config)[:, width:]
    if not work.ends:
        return out.numel()
    over = torch.isin(out, torch.tensor(sorted(work.ends)))
    lengths = torch.where(over.any(1), over.int().argmax(1) + 1, out.shape[1])
    return int(lengths.sum())


def through_truing(model: LanguageModel, work: Workload) -> tuple[int, list[list[Sampled]]]:
    groups = sample(
        model, work.prompts, count=work.count, max_new_tokens=NEW, choice=Choice(1.0), seed=0, end_tokens=work.ends
    )
    return sum(len(row.tokens) for group in groups for row in group), groups


def largest_difference(model: LanguageModel, work: Workload, groups: Sequence[Sequence[Sampled]]) -> float:
    """Captured log-probs against a fresh forward pass."""
    trees = [
        Tree(np.array(prompt, np.int32), tuple(Completion(r.tokens, np.ones(len(r.tokens), bool)) for r in rows))
        for prompt, rows in zip(work.prompts, groups, strict=True)
    ]
    worst = 0.0
    with torch.no_grad():
        for tree, rows in zip(trees, groups, strict=True):
            fresh = model.outputs(model.collate([tree])).logprobs.numpy()
            worst = max(worst, float(np.abs(fresh - np.concatenate([row.logprobs for row in rows])).max()))
    return worst


def rate(run: Callable[[], int]) -> float:
    started = time.perf_counter()
    tokens = run()
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="25m")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    lines = [
        "| | generate | generate, static cache | truing | ratio to the better | log-probs differ by |",
        "|---|---|---|---|---|---|",
    ]
    for name in chosen.dtype:
        module = build(chosen.shape, torch.float32 if name == "fp32" else torch.bfloat16)
        model = LanguageModel(module)
        for work in workloads(module.config.vocab_size):
            rates: dict[str, list[float]] = {"dynamic": [], "static": [], "truing": []}
            for _ in range(chosen.rounds):
                with model.stock_attention() as stock:
                    rates["dynamic"].append(
                        rate(lambda stock=stock, work=work: through_transformers(stock, work, None))
                    )
                    rates["static"].append(
                        rate(lambda stock=stock, work=work: through_transformers(stock, work, "static"))
                    )
                rates["truing"].append(rate(lambda model=model, work=work: through_truing(model, work)[0]))
            dynamic, static, ours = (statistics.median(rates[key]) for key in ("dynamic", "static", "truing"))
            differs = largest_difference(model, work, through_truing(model, work)[1])
            lines.append(
                f"| {name}, {work.name} | {dynamic:,.0f} tok/s | {static:,.0f} tok/s | {ours:,.0f} tok/s "
                f"| {ours / max(dynamic, static):.2f} | {differs:.1e} |"
            )
            print(lines[-1], flush=True)
    title = f"Sampled tokens per second, {ROWS} rows, {chosen.shape} shape, prompts of {PROMPT}, up to {NEW} new tokens"
    comparison.write_results("sampling", title, ["\n".join(lines)], [], {"rounds": chosen.rounds})


if __name__ == "__main__":
    main()
