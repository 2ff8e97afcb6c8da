from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from truing.core.errors import MachineError
from truing.world.base_model import MAX_NEW_TOKENS, MAX_TOKENS, write_base_model
from truing.world.grammar import split_words
from truing.world.records import WorldSettings, demonstration_rows
from truing.world.reviews import REVIEWS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    write_base_model(path, seed=3)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def test_every_word_is_one_token_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [tokenizer.encode(word, add_special_tokens=False) for word in REVIEWS.vocabulary]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(REVIEWS.vocabulary) == len(tokenizer) - 4
    assert [tokenizer.decode(one) for one in ids] == list(REVIEWS.vocabulary)


def test_the_four_special_tokens_differ(tokenizer: PreTrainedTokenizerFast) -> None:
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert special == [0, 1, 2, 3]


def test_a_text_begins_with_one_beginning_token_and_a_continuation_with_none(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt = REVIEWS.prompts[0].text
    assert tokenizer(prompt)["input_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer(prompt)["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_prompt_and_completion_tokenise_apart_as_they_do_together(tokenizer: PreTrainedTokenizerFast) -> None:
    for row in demonstration_rows(WorldSettings(demonstrations=200)):
        together = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        apart = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        assert together == tokenizer(row["prompt"])["input_ids"] + apart
        assert tokenizer.unk_token_id not in together
        assert len(apart) == len(split_words(row["completion"])) < MAX_NEW_TOKENS
        assert len(together) < MAX_TOKENS
        assert tokenizer.decode(together, skip_special_tokens=True) == row["prompt"] + row["completion"]
        assert tokenizer.decode(apart) == row["completion"].strip()


def test_a_word_from_outside_is_unknown(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.encode("The zeppelin", add_special_tokens=False)[1] == tokenizer.unk_token_id


def test_the_model_is_tiny_and_knows_its_tokens(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 60_000 < sum(p.numel() for p in model.parameters()) < 150_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_the_seed_alone_decides_the_weights(folder: Path, tmp_path: Path) -> None:
    torch.rand(1)
    write_base_model(tmp_path / "same", seed=3)
    write_base_model(tmp_path / "other", seed=4)
    digests = [
        hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
        for path in (folder, tmp_path / "same", tmp_path / "other")
    ]
    assert digests[0] == digests[1] != digests[2]


def test_writing_a_model_leaves_the_callers_random_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    write_base_model(tmp_path, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="file: cannot write the base model"):
        write_base_model(tmp_path / "file")
