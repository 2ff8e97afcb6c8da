"""Make what a row of the benchmark runs on: a model of a shape with random weights, its tokenizer, an adapter, rows.

Tells the device's name on its last line. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cost import SHAPES, Shape

WORDS = 400
"""Words of the tokenizer; the model's vocabulary is larger, as its matrices are what costs."""


def write_tokenizer(folder: Path) -> None:
    """One token a word, so that rows have exact lengths."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel({**words, "</s>": WORDS, "<pad>": WORDS + 1}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)


def write_model(folder: Path, adapter: Path, shape: Shape, device: str) -> None:
    """Save a model with seeded weights in bfloat16, and beside it a LoRA of rank 16 with B = 0."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=8_192,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=WORDS,
        pad_token_id=WORDS + 1,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model.name_or_path = str(folder)
    get_peft_model(model, settings).save_pretrained(adapter, save_embedding_layers=False)


def text(count: int, seed: int) -> str:
    return " ".join(f"w{(seed * 7919 + place * (seed % 13 + 1)) % WORDS}" for place in range(count))


def write_rows(folder: Path, count: int, prompt: int, completion: int) -> None:
    """Comparisons, demonstrations and prompts of exact lengths; the end token counts in a completion's."""
    pairs: list[dict[str, Any]] = []
    for number in range(count):
        pair = {"prompt": text(prompt, number) + " "}
        pairs.append(
            {**pair, "chosen": text(completion - 1, number + 101), "rejected": text(completion - 1, number + 202)}
        )
    rows = {
        "dpo": pairs,
        "sft": [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs],
        "ppo": [{"prompt": pair["prompt"]} for pair in pairs],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--rows", type=int, nargs=3, metavar=("COUNT", "PROMPT", "COMPLETION"), required=True)
    chosen = parser.parse_args()
    import torch

    model = chosen.output / "model"
    model.mkdir(parents=True, exist_ok=True)
    write_tokenizer(model)
    write_model(model, chosen.output / "adapter", SHAPES[chosen.shape], chosen.device)
    write_rows(chosen.output, *chosen.rows)
    print(torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu")


if __name__ == "__main__":
    main()
