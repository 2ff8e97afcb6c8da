"""Tokenizers small enough to build in a test, of the two kinds that behave differently at the joints of a text."""

from __future__ import annotations

import string
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the answer to the question is four\n\nHuman: what is two and two?\n\nAssistant: four",
    "hello there, hello world; the quick brown fox jumps over the lazy dog\n",
]
MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def _wrap(core: Tokenizer, bos: bool) -> PreTrainedTokenizerFast:
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@cache
def byte_level(bos: bool = False) -> PreTrainedTokenizerFast:
    """Like GPT-2's: a text reads the same wherever it stands, and words carry their space."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return _wrap(core, bos)


@cache
def sentencepiece(bos: bool = False) -> PreTrainedTokenizerFast:
    """Like Llama 2's: a text gets a space put before it, and unknown characters fall apart into bytes."""
    letters = ["▁", *string.ascii_letters, *string.digits, *",.;:?!#"]
    pairs = [("▁", letter) for letter in string.ascii_lowercase] + [("h", "e"), ("▁t", "he")]
    names = [*MARKS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in pairs)]
    core = Tokenizer(
        models.BPE(
            {name: n for n, name in enumerate(names)}, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(MARKS)
    return _wrap(core, bos)
