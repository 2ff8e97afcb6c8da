"""Cases, and a tiny model with small files of every kind, for the advisor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from tests.data.tiny import byte_level
from truing.advisor.case import Case
from truing.advisor.ground import DataFile, Ground
from truing.core.trees import ExampleKind

BIG = 7_000_000_000


def case(**known: Any) -> Case:
    """A base model of seven billion weights on a machine that LoRA fits into."""
    return Case(**{"parameters": BIG, "full_fits": False, "lora_fits": True, "tuned": False, **known})


def write_model(folder: Path) -> Path:
    tokenizer = byte_level()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(kind: ExampleKind, count: int) -> list[dict[str, Any]]:
    """Different rows of a kind, none like another."""
    made = []
    for number in range(count):
        asked = f"question {number} about item {number * 7 % 101}"
        good, bad = f"answer {number} is {number * number}", f"reply {number * 3} or {number + 5}"
        made.append(
            {
                "demonstration": {"prompt": asked, "completion": good},
                "comparison": {"prompt": asked, "chosen": good, "rejected": bad},
                "judgement": {"prompt": asked, "completion": good if number % 2 else bad, "label": bool(number % 2)},
                "prompt": {"prompt": asked},
            }[kind]
        )
    return made


def write_rows(folder: Path, kind: ExampleKind, count: int) -> Path:
    file = folder / f"{kind}s.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(kind, count)), encoding="utf-8")
    return file


def ground(folder: Path, *kinds: ExampleKind, count: int = 60, rewards: tuple[str, ...] = ()) -> Ground:
    """Files of some kinds beside a tiny model."""
    files = tuple(DataFile(str(write_rows(folder, kind, count)), kind, count) for kind in kinds)
    return Ground(str(write_model(folder / "model")), files, 128, 24, "plain", rewards)
