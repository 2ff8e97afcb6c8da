"""Make the model folder of a named shape, its tokenizer, and the LoRA adapter that both sides start from.

Nothing is downloaded: the weights are random but seeded, the tokenizer is trained on the data files of the benchmark.
What is measured is arithmetic on tensors of a known shape; what is compared is whether two programs do the same
arithmetic. Neither needs a model that can write.

python benchmarks/shapes.py --shape 25m --corpus pairs.json demonstrations.json --output work/25m
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BOS, END, PAD = "<|bos|>", "<|im_end|>", "<|pad|>"
TURN = "<|im_start|>"

# ChatML with two changes that make one text have one tokenisation, whoever splits prompt from completion: content is
# trimmed, so the newline that ends a header never merges with what follows, and nothing follows the last end token.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)

TOKENIZER_SIZE = 16_384


class Shape(NamedTuple):
    """Dimensions of a Llama model with tied embeddings."""

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int
    rope_theta: float


SHAPES = {
    "1m": Shape(16_384, 64, 172, 5, 8, 4, 10_000.0),
    "25m": Shape(16_384, 512, 1_280, 6, 8, 4, 10_000.0),
    "135m": Shape(49_152, 576, 1_536, 30, 9, 3, 100_000.0),  # the dimensions of SmolLM2-135M
}


def corpus_texts(paths: list[Path]) -> Iterator[str]:
    """Every string value of the JSON files, however deep it lies."""
    for path in paths:
        pending = [json.loads(path.read_text(encoding="utf-8"))]
        while pending:
            value = pending.pop()
            if isinstance(value, str):
                yield value
            elif isinstance(value, dict):
                pending.extend(value.values())
            elif isinstance(value, list):
                pending.extend(value)


def write_tokenizer(folder: Path, corpus: list[Path]) -> None:
    """Train a byte-level BPE tokenizer of 16,384 tokens and save it with the chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=[PAD, BOS, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus_texts(corpus), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=END, pad_token=PAD, additional_special_tokens=[TURN]
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def write_model(folder: Path, shape: Shape, seed: int) -> int:
    """Save a model of `shape` with seeded normal weights; returns its number of parameters."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=8_192,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def write_adapter(folder: Path, model_folder: Path, rank: int, seed: int) -> None:
    """Save the start adapter: `peft`'s LoRA on all linear layers, seeded A, zero B, alpha twice the rank."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    torch.manual_seed(seed)
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, settings).save_pretrained(folder)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shape", choices=sorted(SHAPES), default="25m")
    arguments.add_argument("--corpus", type=Path, nargs="+", required=True, help="JSON files the tokenizer learns from")
    arguments.add_argument("--output", type=Path, required=True, help="folder that gets model/ and adapter/")
    arguments.add_argument("--rank", type=int, default=16)
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()
    model_folder = chosen.output / "model"
    model_folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(model_folder, chosen.corpus)
    parameters = write_model(model_folder, SHAPES[chosen.shape], chosen.seed)
    write_adapter(chosen.output / "adapter", model_folder, chosen.rank, chosen.seed + 1)
    print(f"{chosen.shape}: {parameters:,} parameters in {model_folder}, start adapter of rank {chosen.rank} beside it")


if __name__ == "__main__":
    main()
