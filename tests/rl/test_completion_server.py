"""The client of completion servers, against a server in this process that says what each test wants."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from tests.data.tiny import byte_level, sentencepiece
from truing.core.errors import InputError, MachineError
from truing.core.samples import Sampled
from truing.core.settings import parse
from truing.rl import completion_server
from truing.rl.completion_server import CompletionServer
from truing.rl.server_settings import ServerSettings

END = 1
TEXT = byte_level()("hello there")["input_ids"]

Reply = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.paths.append(self.path)
            reply = self.server.replies.pop(0) if len(self.server.replies) > 1 else self.server.replies[0]
        reply(self, body)

    def send(self, status: int, content: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = length is not None

    def log_message(self, *args: object) -> None: ...


class Stub(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.replies: list[Reply] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(completion_server, "FIRST_PAUSE", 0.01)
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def says(content: Any, status: int = 200) -> Reply:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda handler, body: handler.send(status, raw)


def hangs(handler: Handler, body: dict[str, Any]) -> None:
    handler.server.closing.wait(5)
    handler.close_connection = True


def cut_off(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, b'{"choices": [', length=1000)


def choice(index: int = 0, tokens: tuple[int, ...] = (10, 11, END), **changes: Any) -> dict[str, Any]:
    return {
        "index": index,
        "text": "he",
        "finish_reason": "stop",
        "logprobs": {
            "tokens": [f"token_id:{token}" for token in tokens],
            "token_logprobs": [-0.5 * (n + 1) for n in range(len(tokens))],
        },
        "token_ids": list(tokens),
        **changes,
    }


def vllm(*choices: dict[str, Any], prompt_tokens: int = 2) -> dict[str, Any]:
    return {
        "object": "text_completion",
        "choices": list(choices),
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 3},
    }


def llama(
    tokens: list[int], *, content: list[int] | None = None, finish: str = "stop", **changes: Any
) -> dict[str, Any]:
    listed = tokens if content is None else content
    return {
        "choices": [
            {
                "index": 0,
                "text": "he",
                "finish_reason": finish,
                "logprobs": {"content": [{"id": token, "logprob": -1.0, "top_logprobs": []} for token in listed]},
            }
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": len(tokens)},
        "__verbose": {"tokens": tokens},
        **changes,
    }


def engine(stub: Stub, kind: str = "vllm", tokenizer: Any = None, **changes: Any) -> CompletionServer:
    settings = {"kind": kind, "url": stub.url, "model": "policy", "timeout": 5.0, "retries": 2, **changes}
    return CompletionServer(parse(ServerSettings, settings), tokenizer or byte_level(), [END])


def ask(
    server: CompletionServer,
    prompts: tuple[list[int], ...] = ([4, 5],),
    count: int = 1,
    temperature: float = 1.0,
    seed: int = 3,
) -> list[list[Sampled]]:
    return server.sample(prompts, count=count, max_new_tokens=6, temperature=temperature, seed=seed)


def test_completions_come_in_the_order_of_the_prompts(stub: Stub) -> None:
    def slow_first(handler: Handler, body: dict[str, Any]) -> None:
        first = body["prompt"][0]
        time.sleep(0.1 if first == 20 else 0.0)
        made = [choice(1, (first + 2,), finish_reason="length"), choice(0, (first + 1, END))]  # and out of order
        handler.send(200, json.dumps(vllm(*made, prompt_tokens=len(body["prompt"]))).encode())

    stub.replies = [slow_first]
    found = ask(engine(stub), ([20, 5], [30], [40]), count=2)
    assert [[list(one.tokens) for one in row] for row in found] == [[[n + 1, END], [n + 2]] for n in (20, 30, 40)]
    assert [[one.ended for one in row] for row in found] == [[True, False]] * 3
    assert found[0][0].tokens.dtype == np.int32
    assert found[0][0].logprobs.dtype == np.float32
    assert list(found[0][0].logprobs) == [-0.5, -1.0]
    assert set(stub.paths) == {"/v1/completions"}


def test_the_whole_distribution_is_asked_for_in_token_ids(stub: Stub) -> None:
    stub.replies = [says(vllm(choice()))]
    ask(engine(stub), temperature=0.7)
    off = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    rest = {"frequency_penalty": 0.0, "min_tokens": 0, "watermarking": False, "ignore_eos": False}
    wanted = {**off, **rest, "prompt": [4, 5], "n": 1, "max_tokens": 6, "temperature": 0.7, "stop_token_ids": [END]}
    assert {key: stub.requests[0][key] for key in wanted} == wanted


def test_a_repeated_prompt_has_another_seed_and_a_repeated_call_the_same(stub: Stub) -> None:
    stub.replies = [says(vllm(choice(0), choice(1)))]
    server = engine(stub, concurrency=1)
    for seed in (3, 3, 4):
        ask(server, ([4, 5], [4, 5]), count=2, seed=seed)
    first, again, other = (tuple(body["seed"] for body in stub.requests[n : n + 2]) for n in (0, 2, 4))
    assert first == again
    # vLLM counts up from the seed for the further completions of a prompt
    assert len({seed + n for seed in (*first, *other) for n in (0, 1)}) == 8


def test_ids_are_read_from_the_names_of_tokens_where_there_are_no_ids(stub: Stub) -> None:
    stub.replies = [says(vllm(choice(token_ids=None)))]
    found = ask(engine(stub))[0][0]
    assert list(found.tokens) == [10, 11, END]
    assert list(found.logprobs) == [-0.5, -1.0, -1.5]


@pytest.mark.parametrize("logprobs", [None, {"tokens": ["he", "llo"], "token_logprobs": [-1.0, -1.0]}])
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_text_alone_is_tokenised_again_and_has_no_log_probs(
    stub: Stub, logprobs: dict[str, Any] | None, finish: str
) -> None:
    answer = choice(token_ids=None, text="hello there", logprobs=logprobs, finish_reason=finish)
    stub.replies = [says(vllm(answer))]
    found = ask(engine(stub))[0][0]
    assert list(found.tokens) == TEXT + [END] * (finish == "stop")
    assert found.ended == (finish == "stop")
    assert np.isnan(found.logprobs).all()
    assert len(found.logprobs) == len(found.tokens)


def test_log_probs_are_taken_at_temperature_one_alone(stub: Stub) -> None:
    stub.replies = [says(vllm(choice()))]
    for temperature in (0.0, 0.7, 1.3):
        found = ask(engine(stub), temperature=temperature)[0][0]
        assert list(found.tokens) == [10, 11, END]
        assert np.isnan(found.logprobs).all()


def test_a_completion_ends_with_its_first_end_token(stub: Stub) -> None:
    stub.replies = [says(vllm(choice(tokens=(10, END, 12, 13), finish_reason="length")))]
    found = ask(engine(stub))[0][0]
    assert list(found.tokens) == [10, END]
    assert len(found.logprobs) == 2
    assert found.ended


def test_no_prompt_asks_nothing(stub: Stub) -> None:
    assert ask(engine(stub), ()) == []
    assert stub.requests == []


def test_an_empty_prompt_is_refused(stub: Stub) -> None:
    with pytest.raises(InputError, match="empty"):
        ask(engine(stub), ([4], []))


@pytest.mark.parametrize("trouble", [says({}, 500), says({}, 503), says({}, 429), cut_off])
def test_a_passing_fault_is_tried_again(stub: Stub, trouble: Reply) -> None:
    stub.replies = [trouble, trouble, says(vllm(choice()))]
    assert list(ask(engine(stub))[0][0].tokens) == [10, 11, END]
    assert len(stub.requests) == 3
    assert stub.requests[0] == stub.requests[2]


def test_a_lasting_fault_is_the_servers(stub: Stub) -> None:
    stub.replies = [says({"error": {"message": "engine\x1b[31m died", "code": 500}}, 500)]
    with pytest.raises(MachineError, match=r"3 tries.*status 500: engine\\x1b\[31m died"):
        ask(engine(stub))
    assert len(stub.requests) == 3


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (400, {"error": {"message": "too\x1b[2J long", "code": 400}}, r"status 400: too\\x1b\[2J long.*'model'"),
        (404, {"object": "error", "message": "no model `policy`"}, r"no model `policy`.*'url' and 'model'"),
        (422, {"detail": "Unexpected fields"}, r"Unexpected fields.*'kind' \(vllm\)"),
        (401, {"error": "Unauthorized"}, r"Unauthorized.*'api_key_from'"),
        (307, b"", r"nothing said.*'url'"),
        (404, b"<html>" + b"x" * 20_000, r"<html>x{100,494}; check"),
    ],
)
def test_a_refusal_is_the_users_and_is_not_tried_again(stub: Stub, status: int, said: Any, expected: str) -> None:
    stub.replies = [says(said, status)]
    with pytest.raises(InputError, match=expected):
        ask(engine(stub))
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"<html>hello</html>", "not the completions"),
        (b'{"choices": [{"index": 0', "not the completions"),
        (b"\xff\xfe", "not the completions"),
        ({"object": "error"}, "'choices': Field required"),
        (vllm(), "0 completions.*expected 1"),
        (vllm(choice(0), choice(1)), "2 completions.*expected 1"),
        (vllm(choice(1)), "other numbers"),
        ({"choices": [choice()]}, "'usage': Field required"),
        (vllm({"index": 0, "text": "he"}), "'choices.0.finish_reason': Field required"),
        (vllm(choice(finish_reason="abort")), "'choices.0.finish_reason'.*'stop' or 'length'"),
        (vllm(choice(token_ids=[10, END])), "2 tokens and 3 log-probs"),
        (vllm(choice(token_ids=["10"])), "'choices.0.token_ids.0'"),
        (vllm(choice(token_ids=[-1])), "'choices.0.token_ids.0'"),
        (vllm(choice(token_ids=[2**31])), "'choices.0.token_ids.0'"),
        (vllm(choice(tokens=())), "0 tokens, expected 1 to 6"),
        (vllm(choice(tokens=(7,) * 7, finish_reason="length")), "7 tokens, expected 1 to 6"),
        (vllm(choice(tokens=(10, 9))), r"ended with token 9, expected one of the policy's end tokens \[1\]"),
        (vllm(choice(logprobs={"tokens": ["a"] * 3, "token_logprobs": [0.0, 7.5, 0.0]})), "token_logprobs.1"),
        (vllm(choice(logprobs={"tokens": ["a"] * 3, "token_logprobs": [0.0, float("nan"), 0.0]})), "finite number"),
        (vllm(choice(), prompt_tokens=3), "read as 3 tokens, expected 2"),
        (vllm(choice(prompt_token_ids=[4, 6])), "other token ids"),
        (vllm(choice(token_ids=None, logprobs=None, text="", finish_reason="length")), "neither text nor an end"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(stub: Stub, answer: Any, expected: str) -> None:
    stub.replies = [says(answer)]
    with pytest.raises(InputError, match=expected) as refused:
        ask(engine(stub))
    assert f"{stub.url}/v1/completions (vllm)" in str(refused.value)
    assert len(stub.requests) == 1


def test_an_answer_without_end_is_not_read_to_it(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_server, "_BYTES_BESIDE", 1000)
    stub.replies = [says(vllm(choice(text="x" * 100_000)))]
    with pytest.raises(InputError, match="longer than 25,576 bytes"):
        ask(engine(stub))


def test_a_server_that_hangs_is_left(stub: Stub) -> None:
    stub.replies = [hangs]
    start = time.monotonic()
    with pytest.raises(MachineError, match=r"no answer in 0\.2 seconds.*'timeout'"):
        ask(engine(stub, timeout=0.2), ([4, 5], [6, 7]))
    assert time.monotonic() - start < 2.0


def test_one_failure_ends_the_others(stub: Stub) -> None:
    def fails_or_hangs(handler: Handler, body: dict[str, Any]) -> None:
        (says({"error": "no"}, 400) if body["prompt"] == [6, 7] else hangs)(handler, body)

    stub.replies = [fails_or_hangs]
    start = time.monotonic()
    with pytest.raises(InputError, match="status 400"):
        ask(engine(stub), ([4, 5], [6, 7]))
    assert time.monotonic() - start < 2.0


def test_no_more_requests_than_allowed_are_under_way(stub: Stub) -> None:
    under_way: list[int] = []

    def counted(handler: Handler, body: dict[str, Any]) -> None:
        under_way.append(1)
        time.sleep(0.02)
        seen.append(len(under_way))
        under_way.pop()
        handler.send(200, json.dumps(vllm(choice())).encode())

    seen: list[int] = []
    stub.replies = [counted]
    ask(engine(stub, concurrency=3), ([4, 5],) * 12)
    assert len(seen) == 12
    assert 1 < max(seen) <= 3


def test_a_server_that_never_was_is_the_users_and_one_that_goes_away_is_not(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=r"no server found in 3 tries.*'url'"):
            ask(engine(stub, url=nowhere))
        stub.replies = [says(vllm(choice()))]
        server = engine(stub)
        ask(server)
        server.settings = server.settings.model_copy(update={"url": nowhere})
        with pytest.raises(MachineError, match="the server failed in 3 tries"):
            ask(server)


def test_the_key_is_sent_and_never_shown(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "key-123")
    stub.replies = [says({"error": "wrong key key-123"}, 401)]
    server = engine(stub, api_key_from="A_KEY")
    with pytest.raises(InputError, match=r"wrong key \*\*\*; check the key in \$A_KEY"):
        ask(server)
    assert stub.headers[0]["Authorization"] == "Bearer key-123"
    assert "key-123" not in repr(server.settings)


@pytest.mark.parametrize(("value", "expected"), [("", "is not set"), ("a\nb", "printable"), ("clé", "printable")])
def test_a_key_that_is_none_is_refused_unseen(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, value: str, expected: str
) -> None:
    monkeypatch.setenv("A_KEY", value)
    with pytest.raises(InputError, match=f"A_KEY.*{expected}") as refused:
        engine(stub, api_key_from="A_KEY")
    assert not value or value not in str(refused.value)


def test_the_environment_puts_nothing_between(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    stub.replies = [says(vllm(choice()))]
    ask(engine(stub))
    assert "Authorization" not in stub.headers[0]


@pytest.mark.parametrize(
    "url",
    [
        *("no", "localhost:8000", "ftp://host", "http://", "http://user:word@host", "http://host/?key=1"),
        *("http://[1", "http://host:http", "http://host:99999"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="'url'"):
        parse(ServerSettings, {"kind": "vllm", "url": url, "model": "m"})


def test_an_address_may_have_its_version(stub: Stub) -> None:
    stub.replies = [says(vllm(choice()))]
    ask(engine(stub, url=f"{stub.url}/v1/"))
    assert stub.paths == ["/v1/completions"]


def test_an_address_is_known_for_https_however_it_is_written() -> None:
    """Certificates are checked wherever the address begins with https."""
    settings = parse(ServerSettings, {"kind": "vllm", "url": "HTTPS://Host:8000/v1/", "model": "m"})
    assert settings.url == "https://host:8000"


def test_a_running_loop_is_no_hindrance(stub: Stub) -> None:
    async def notebook() -> list[list[Sampled]]:
        return ask(engine(stub))

    stub.replies = [says(vllm(choice()))]
    assert list(asyncio.run(notebook())[0][0].tokens) == [10, 11, END]


def test_llama_cpp_is_asked_once_for_each_completion(stub: Stub) -> None:
    stub.replies = [says(llama([10, END])), says(llama([11, 12], finish="length"))]
    found = ask(engine(stub, "llama.cpp", concurrency=1), count=2)[0]
    assert [list(one.tokens) for one in found] == [[10, END], [11, 12]]
    assert [list(one.logprobs) for one in found] == [[-1.0, -1.0]] * 2
    assert [one.ended for one in found] == [True, False]
    assert len({body["seed"] for body in stub.requests}) == 2
    assert stub.requests[0]["samplers"] == ["temperature"]
    assert stub.requests[0]["prompt"] == [4, 5]


def test_llama_cpps_log_probs_count_for_nothing_where_they_are_not_of_all_tokens(stub: Stub) -> None:
    """It leaves out tokens that end within a character."""
    stub.replies = [says(llama([200, 201, END], content=[201, END]))]
    found = ask(engine(stub, "llama.cpp"))[0][0]
    assert list(found.tokens) == [200, 201, END]
    assert np.isnan(found.logprobs).all()


def test_llama_cpps_ids_come_from_its_log_probs_where_it_does_not_list_them(stub: Stub) -> None:
    complete = llama([10, END])
    del complete["__verbose"]
    lacking = llama([200, 201, END], content=[201, END])
    del lacking["__verbose"]
    stub.replies = [says(complete), says(lacking)]
    server = engine(stub, "llama.cpp")
    assert list(ask(server)[0][0].tokens) == [10, END]
    with pytest.raises(InputError, match="2 token ids, expected 3"):
        ask(server)


def test_transformers_serve_is_given_text_that_it_reads_as_the_same_tokens(stub: Stub) -> None:
    answer = {"choices": [{"index": 0, "text": " there", "finish_reason": "stop"}]}
    for tokenizer in (byte_level(), byte_level(True), sentencepiece(), sentencepiece(True)):
        prompt = tokenizer("hello")["input_ids"]
        stub.replies = [says({**answer, "usage": {"prompt_tokens": len(prompt), "completion_tokens": 2}})]
        found = ask(engine(stub, "transformers", tokenizer), (prompt,))[0][0]
        assert stub.requests[-1]["prompt"] == "hello"
        assert tokenizer.decode([*prompt, *found.tokens], skip_special_tokens=True) == "hello there"
        assert found.tokens[-1] == END
        assert np.isnan(found.logprobs).all()


def test_transformers_serve_has_top_k_switched_off_by_a_whole_configuration(stub: Stub) -> None:
    usage = {"prompt_tokens": len(TEXT), "completion_tokens": 2}
    stub.replies = [says({"choices": [{"index": 0, "text": "a", "finish_reason": "length"}], "usage": usage})]
    server = engine(stub, "transformers")
    ask(server, (TEXT,), temperature=0.7)
    ask(server, (TEXT,), temperature=0.0)
    sampled, greedy = (json.loads(body["generation_config"]) for body in stub.requests)
    wanted = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_new_tokens": 6}
    assert {key: sampled[key] for key in wanted} == wanted
    assert sampled["repetition_penalty"] == 1.0
    assert not greedy["do_sample"]
    # it refuses what it does not know
    assert set(stub.requests[0]) == {"model", "prompt", "seed", "generation_config"}


def test_a_prompt_that_is_not_its_text_is_refused_for_transformers_serve(stub: Stub) -> None:
    apart = [byte_level().convert_tokens_to_ids(letter) for letter in "hello"]
    with pytest.raises(InputError, match=r"takes text alone.*vllm or llama\.cpp"):
        ask(engine(stub, "transformers"), (apart,))
    assert stub.requests == []
