"""Samples from real servers of a tiny random model, beside the model's own forward pass.

`transformers serve` needs the extra `servers`; llama.cpp needs its program `llama-server` too, on the PATH.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.data.tiny import byte_level
from tests.models.families import make, stock_logprobs
from truing.core.errors import InputError
from truing.core.samples import Sampled
from truing.core.trees import Completion, Tree
from truing.rl.completion_server import CompletionServer
from truing.rl.server_settings import ServerSettings

ENDS = (1, 3)  # </s> and <|im_end|>; llama.cpp takes both for ends by their names
PROMPTS = ("hello there", "the answer to the question is", "fox")
WIDEST = 50
"""Transformers' own top-k, which a server applies where it is not switched off."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    made = make("llama", vocab_size=len(tokenizer), eos_token_id=list(ENDS), bos_token_id=0, pad_token_id=1)
    with torch.no_grad():
        made.get_output_embeddings().weight[list(ENDS)] *= 4  # so that some completions end
    return made


@contextmanager
def serving(command: Sequence[str], url: str, log: Path) -> Iterator[None]:
    """Run a server until it is no longer needed."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                try:
                    if httpx2.get(f"{url}/health", trust_env=False).status_code == 200:
                        break
                except httpx2.TransportError:
                    pass
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def first_tokens(engine: CompletionServer, prompt: Sequence[int]) -> set[int]:
    """What 160 completions begin with, all but uniformly drawn.

    Their second token is there in case that the first is no text.
    """
    drawn = engine.sample([prompt], count=160, max_new_tokens=2, temperature=4.0, seed=5)[0]
    return {int(one.tokens[0]) for one in drawn}


def ids(found: list[list[Sampled]]) -> list[list[list[int]]]:
    return [[one.tokens.tolist() for one in row] for row in found]


@pytest.fixture(scope="module")
def transformers_serve(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerSettings]:
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("policy")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    code = "from transformers.cli.transformers import main; main()"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-c", code, "serve", str(folder), *options]
    with serving(command, url, folder / "log"):
        yield ServerSettings(kind="transformers", url=url, model=str(folder))


def test_transformers_serve_samples_the_whole_distribution(
    transformers_serve: ServerSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = CompletionServer(transformers_serve, tokenizer, ENDS)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    found = engine.sample(prompts, count=4, max_new_tokens=24, temperature=1.0, seed=3)
    assert [len(row) for row in found] == [4] * 3
    assert all(np.isnan(one.logprobs).all() for row in found for one in row)
    assert any(one.ended for row in found for one in row)
    assert all((one.tokens[-1] == tokenizer.eos_token_id) == one.ended for row in found for one in row)
    assert ids(found) == ids(engine.sample(prompts, count=4, max_new_tokens=24, temperature=1.0, seed=3))
    assert ids(found) != ids(engine.sample(prompts, count=4, max_new_tokens=24, temperature=1.0, seed=4))
    assert len(first_tokens(engine, prompts[0])) > WIDEST


def test_transformers_serve_says_what_it_refuses(
    transformers_serve: ServerSettings, tokenizer: PreTrainedTokenizerFast
) -> None:
    other = transformers_serve.model_copy(update={"model": "another"})
    with pytest.raises(InputError, match=r"status 400.*pinned.*another"):
        CompletionServer(other, tokenizer, ENDS).sample([[20]], count=1, max_new_tokens=2, temperature=1.0, seed=3)
    other = transformers_serve.model_copy(update={"kind": "vllm"})
    with pytest.raises(InputError, match=r"status 422.*'kind' \(vllm\)"):
        CompletionServer(other, tokenizer, ENDS).sample([[20]], count=1, max_new_tokens=2, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def llama_server(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerSettings]:
    program = shutil.which("llama-server")
    if program is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs llama.cpp's llama-server on the PATH and the package gguf")
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "policy.gguf", model, tokenizer)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    exact = ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--ctx-size", "512", "--parallel", "4", "--threads", "1"]
    command = [program, "--model", str(folder / "policy.gguf"), *options, *exact, "--offline"]
    with serving(command, url, folder / "log"):
        yield ServerSettings(kind="llama.cpp", url=url, model="policy", concurrency=4)


def test_llama_cpps_log_probs_are_the_models_own(
    llama_server: ServerSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = CompletionServer(llama_server, tokenizer, ENDS)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    found = engine.sample(prompts, count=6, max_new_tokens=24, temperature=1.0, seed=3)
    assert [len(row) for row in found] == [6] * 3
    samples = [(prompt, one) for prompt, row in zip(prompts, found, strict=True) for one in row]
    assert all(one.ended == (one.tokens[-1] in ENDS) for _, one in samples)
    assert any(one.ended for _, one in samples)
    assert all(len(one.tokens) == 24 for _, one in samples if not one.ended)
    given = [(prompt, one) for prompt, one in samples if not np.isnan(one.logprobs).any()]
    assert given
    trees = [
        Tree(np.asarray(prompt, dtype=np.int32), (Completion(one.tokens, np.ones(len(one.tokens), dtype=bool)),))
        for prompt, one in given
    ]
    with torch.no_grad():
        expected = stock_logprobs(model, trees).numpy()
    np.testing.assert_allclose(np.concatenate([one.logprobs for _, one in given]), expected, atol=2e-4)


def test_llama_cpp_samples_the_whole_distribution(
    llama_server: ServerSettings, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = CompletionServer(llama_server, tokenizer, ENDS)
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    again = [engine.sample([prompt], count=3, max_new_tokens=8, temperature=1.0, seed=3) for _ in range(2)]
    assert ids(again[0]) == ids(again[1])
    assert len(first_tokens(engine, prompt)) > WIDEST
    greedy = engine.sample([prompt], count=2, max_new_tokens=8, temperature=0.0, seed=3)[0]
    assert greedy[0].tokens.tolist() == greedy[1].tokens.tolist()
    assert np.isnan(greedy[0].logprobs).all()


def test_llama_cpp_says_what_it_refuses(llama_server: ServerSettings, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = CompletionServer(llama_server, tokenizer, ENDS)
    with pytest.raises(InputError, match="status 400"):
        engine.sample([[20] * 2000], count=1, max_new_tokens=2, temperature=1.0, seed=3)
    with pytest.raises(InputError, match=r"expected one of the policy's end tokens \[2\]"):
        CompletionServer(llama_server, tokenizer, [2]).sample(
            [tokenizer(PROMPTS[0])["input_ids"]], count=24, max_new_tokens=24, temperature=1.0, seed=3
        )


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """The model as llama.cpp's converter would write it, in float32."""
    import gguf

    assert isinstance(model, LlamaForCausalLM)
    config = model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(heads)
    out.add_head_count_kv(groups)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_rope_dimension_count(config.hidden_size // heads)
    out.add_vocab_size(config.vocab_size)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"] for token in parts["added_tokens"]}
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    kinds = [gguf.TokenType.CONTROL if n in special else gguf.TokenType.NORMAL for n in range(len(tokenizer))]
    out.add_token_types(kinds)
    out.add_token_merges([" ".join(pair) for pair in parts["model"]["merges"]])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    out.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp turns neighbouring pairs, not halves
            split = weight.reshape(heads if "q_proj" in name else groups, 2, -1, weight.shape[1])
            weight = split.swapaxes(1, 2).reshape(weight.shape)
        out.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(weight))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
