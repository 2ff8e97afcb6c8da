"""A model's folder as far as a check of data needs one: a tokenizer and a configuration."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaConfig

from tests.data.tiny import byte_level


def model_folder(folder: Path) -> str:
    """Write the folder; its tokenizer puts a BOS before a text and ends answers with `</s>`."""
    tokenizer = byte_level(bos=True)
    tokenizer.save_pretrained(folder)
    sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 8)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, num_attention_heads=1, **sizes, **ends)
    config.save_pretrained(folder)
    return str(folder)
