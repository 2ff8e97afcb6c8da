"""A tiny model and tokenizer for the world, with random weights, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from truing.core.errors import MachineError
from truing.world.grammar import WORD
from truing.world.reviews import REVIEWS
from truing.world.world import World

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
MAX_TOKENS = 64
"""More than twice what the longest prompt and answer need."""
MAX_NEW_TOKENS = 16
TEMPERATURE = 0.7
"""A model this small is fluent after seconds of training when its least likely words are damped a little."""


def write_base_model(folder: Path, seed: int = 0, world: World = REVIEWS) -> None:
    """Write an untrained model of about 0.07 M parameters and its tokenizer; the same seed gives the same weights."""
    tokenizer = build_tokenizer(world)
    model = build_model(tokenizer, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
        # Not model.save_pretrained, which draws a progress bar for half a megabyte.
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    except OSError as fault:
        raise MachineError(
            f"{folder}: cannot write the base model ({fault.strerror}); choose another folder"
        ) from fault


def build_tokenizer(world: World = REVIEWS) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a word or mark, which puts the beginning token before a text by itself."""
    vocabulary = {word: index for index, word in enumerate((PAD, BOS, EOS, UNK, *world.vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    # The word-piece decoder is used for what it does beside word pieces: spaces between words, none before . , ! and ?
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=MAX_TOKENS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return the model with seeded random weights; the caller's random state is left as it was."""
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.05,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model
