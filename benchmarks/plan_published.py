"""Planned throughput and memory beside what others have published for the same models, cards and layouts.

python benchmarks/plan_published.py

Nothing is run: each row is a measurement of somebody else, with its source, and the plan of the same setting. Their
kernels are not ours (most compile the model), so that ratios within a table, from few GPUs to many, say more than a
row.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import comparison
from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import Architecture, architecture
from truing.planner.cluster import cluster_of
from truing.planner.cost import cost_of
from truing.planner.machine import named_card
from truing.planner.memory import predict
from truing.planner.methods import METHODS
from truing.planner.setting import Base, Row, Setting, Work, packed
from truing.planner.sharding import Layout, rank_memory, traffic_of

LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072}
MPT = {
    "model_type": "gpt_neox",
    "vocab_size": 50368,
    "max_position_embeddings": 65536,
    "rotary_pct": 1.0,
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
}
"""MPT is a GPT whose feed-forward is four times its width; no family of ours is nearer than GPT-NeoX."""


def llama(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    shape = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**LLAMA, **shape, "num_attention_heads": heads}


def mpt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    return {**MPT, **shape, "num_attention_heads": heads}


SHAPES = {
    "Llama 3.1 8B": llama(4096, 14336, 32, 32),
    "Llama 3 70B": llama(8192, 28672, 80, 64),
    "MPT 1b": mpt(2048, 24, 16),
    "MPT 3b": mpt(2560, 32, 20),
    "MPT 7b": mpt(4096, 32, 32),
    "MPT 13b": mpt(5120, 40, 40),
    "MPT 30b": mpt(7168, 48, 56),
    "MPT 70b": mpt(8192, 80, 64),
}

TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, December 2024"
TITAN_A100 = "torchtitan, docs/performance.md, 2024"
TUNE = "torchtune, README.md, September 2024"
FOUNDRY = "LLM Foundry, scripts/train/benchmarking/README.md, 2023"


@dataclass(frozen=True, slots=True)
class Published:
    """Somebody's measurement."""

    source: str
    shape: str
    card: str
    gpus: int
    length: int
    rows: int
    """Of a micro-batch of a GPU."""
    again: bool
    """Whether activations were all computed again; selective checkpointing counts as not."""
    speed: float
    """Tokens a second and GPU."""
    micros: int = 1
    lora: bool = False
    gib: float | None = None
    base: Base = "bf16"

    @property
    def name(self) -> str:
        how = ", LoRA" if self.lora else ""
        again = ", again" if self.again else ""
        return f"{self.shape}{how}, {self.gpus} {self.card}, {self.rows} × {self.length:,}{again}"


PUBLISHED = (
    Published(TITAN, "Llama 3.1 8B", "h100", 8, 8192, 2, False, 5762, gib=82.4),
    Published(TITAN, "Llama 3.1 8B", "h100", 128, 8192, 2, False, 5605, gib=67.0),
    Published(TITAN + ", compiled", "Llama 3.1 8B", "h100", 8, 8192, 2, False, 6667, gib=77.0),
    Published(TITAN + ", compiled", "Llama 3.1 8B", "h100", 128, 8192, 2, False, 6514, gib=62.0),
    Published(TITAN_A100, "Llama 3.1 8B", "a100-80gb", 64, 8192, 1, False, 2904),
    Published(TITAN_A100, "Llama 3 70B", "a100-80gb", 64, 8192, 1, True, 331),
    Published(TUNE, "Llama 3.1 8B", "rtx4090", 1, 2048, 2, True, 3083, lora=True, gib=16.2),
    Published(TUNE, "Llama 3.1 8B", "a6000", 1, 2048, 2, False, 4699, lora=True, gib=30.3),
    Published(TUNE, "Llama 3 70B", "a100-80gb", 8, 2048, 2, True, 3497 / 8, lora=True, gib=27.6),
    *(
        Published(FOUNDRY, "MPT 7b", "a100-40gb", gpus, 2048, rows, True, speed)
        for gpus, rows, speed in ((16, 16, 3645), (32, 18, 3725), (64, 18, 3665), (128, 18, 3623))
    ),
    *(
        Published(FOUNDRY, "MPT 13b", "a100-40gb", gpus, 2048, rows, True, speed)
        for gpus, rows, speed in ((16, 10, 1993), (32, 14, 1998), (64, 16, 1976), (128, 16, 1972))
    ),
    *(
        Published(FOUNDRY, "MPT 13b", "h100", gpus, 2048, 2, False, speed)
        for gpus, speed in ((8, 4792), (16, 4767), (32, 4811), (64, 4800))
    ),
    *(
        Published(FOUNDRY, "MPT 30b", "h100", gpus, 2048, rows, True, speed, micros)
        for gpus, rows, micros, speed in ((8, 3, 21, 2002), (16, 10, 3, 2263), (32, 14, 3, 2308))
    ),
    Published(FOUNDRY, "MPT 70b", "a100-40gb", 64, 2048, 2, True, 276),
    Published(FOUNDRY, "MPT 70b", "a100-40gb", 128, 2048, 4, True, 376),
    Published(FOUNDRY, "MPT 70b", "h100", 32, 2048, 2, True, 882, 16),
    Published(FOUNDRY, "MPT 70b", "h100", 64, 2048, 8, True, 1039, 4),
)


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan says of the same setting."""

    speed: float
    gib: float


def planned(one: Published) -> Planned:
    model: Architecture = architecture(SHAPES[one.shape], one.shape)
    adapter = AdapterSettings(rank=8) if one.lora else None
    setting = Setting("sft", METHODS["sft"], adapter, one.base, "cuda", one.again, one.rows * one.length)
    row = Row(1, (one.length - 1,), one.length - 1)
    work = Work.of_steps([packed([row] * one.rows * one.micros, setting.micro_tokens)], 1)
    card = named_card(one.card)
    cost = cost_of(model, setting, work, card.rates)
    assert cost.seconds is not None
    if one.gpus == 1:
        return Planned(work.tokens / cost.seconds, predict(model, setting, work).total / 2**30)
    cluster = cluster_of(card, -(-one.gpus // 8), min(8, one.gpus), None, None)
    layout = Layout(1, one.gpus)
    waited = traffic_of(model, setting, layout, cluster, cost, work).waited
    memory = rank_memory(model, setting, layout, work)
    return Planned(work.tokens / (cost.seconds + waited), memory.total / 2**30)


def main() -> None:
    lines = [
        "| setting | tokens/s of a GPU, planned | published | ratio | GiB, planned | published | source |",
        "|---|---|---|---|---|---|---|",
    ]
    rows, ratios = [], []
    for one in PUBLISHED:
        found = planned(one)
        ratios.append(found.speed / one.speed)
        memory = "" if one.gib is None else f"{one.gib:.1f}"
        lines.append(
            f"| {one.name} | {found.speed:,.0f} | {one.speed:,.0f} | {ratios[-1]:.2f} | {found.gib:.1f} | {memory} | "
            f"{one.source} |"
        )
        rows.append({"setting": one.name, "source": one.source, "planned": found.speed, "published": one.speed})
    print("\n".join(lines))
    low, high = min(ratios), max(ratios)
    verdict = f"{len(ratios)} measurements: planned over published {statistics.median(ratios):.2f} in the median, "
    verdict += f"{low:.2f} to {high:.2f}. {scaled()}"
    print(verdict)
    comparison.write_table("plan_published", "Planned beside published", [verdict, "\n".join(lines)], rows)


def scaled() -> str:
    """How well the change from few GPUs to many is foretold: no rate, and no activation, has a part in that."""
    series: dict[tuple[str, str, str], list[Published]] = {}
    for one in PUBLISHED:
        series.setdefault((one.source, one.shape, one.card), []).append(one)
    said = []
    for (_, shape, card), members in series.items():
        few, many = min(members, key=lambda one: one.gpus), max(members, key=lambda one: one.gpus)
        if few.gpus == many.gpus or (few.rows, few.micros) != (many.rows, many.micros):
            continue
        before, after = planned(few), planned(many)
        text = f"{shape} from {few.gpus} to {many.gpus} {card}: speed × {after.speed / before.speed:.3f}, "
        text += f"published {many.speed / few.speed:.3f}"
        if few.gib is not None and many.gib is not None:
            text += f"; memory {after.gib - before.gib:+.1f} GiB, published {many.gib - few.gib:+.1f}"
        said.append(text)
    return "A GPU of few and of many, planned. " + ". ".join(said) + "."


if __name__ == "__main__":
    main()
