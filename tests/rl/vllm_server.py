"""A server in this process with the routes and refusals of vLLM's, and a real model behind them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from truing.models.decoding import Choice
from truing.models.language_model import LanguageModel
from truing.models.loading import LoadedModel, load_model
from truing.models.lora.adapters import Adapters
from truing.models.lora.peft_format import load_adapter
from truing.models.sampling import sample

NAME = "policy"
Answer = tuple[int, Any]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: VllmServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            if self.server.dies_after is not None and len(self.server.orders) >= self.server.dies_after:
                self.close_connection = True
                return
            self.server.orders.append((self.path, body))
            status, answer = self.server.answer(self.path, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None: ...


class VllmServer(ThreadingHTTPServer):
    """Serves the model of a folder as `policy`.

    As in vLLM, what was computed of a prompt is used again under the same name until the cache is reset.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        folder: Path,
        *,
        updates: bool = True,
        most_rank: int = 16,
        dev_mode: bool = True,
        forgets_from: int | None = None,
        keeps_cache: bool = False,
        dies_after: int | None = None,
    ) -> None:
        """From its load number `forgets_from` on (0 is the first) it says yes and goes on with what it has."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.orders: list[tuple[str, dict[str, Any]]] = []
        self.updates, self.most_rank, self.dev_mode = updates, most_rank, dev_mode
        self.forgets_from, self.keeps_cache, self.dies_after = forgets_from, keeps_cache, dies_after
        self.loads = 0
        self.take(folder)
        self.names: dict[str, str | None] = {NAME: None}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, folder: Path) -> None:
        """Hold the model of a folder."""
        self.loaded: LoadedModel = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
        self.model = LanguageModel(self.loaded.module)
        self.adapters = Adapters(self.loaded.module)
        self.cache: dict[tuple[str, tuple[int, ...]], LanguageModel] = getattr(self, "cache", {})

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        absent: Answer = (404, {"detail": "Not Found"})
        match path:
            case "/v1/completions":
                return self.complete(body)
            case "/v1/load_lora_adapter":
                return self.load(body["lora_name"], Path(body["lora_path"])) if self.updates else absent
            case "/v1/unload_lora_adapter":
                return self.unload(body["lora_name"]) if self.updates else absent
            case "/collective_rpc":
                return self.rpc(body) if self.dev_mode else absent
            case "/reset_prefix_cache":
                if self.dev_mode and not self.keeps_cache:
                    self.cache.clear()
                return (200, None) if self.dev_mode else absent
        return absent

    def load(self, name: str, folder: Path) -> Answer:
        if name in self.names:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {folder}")
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.most_rank:
            return error(500, f"LoRA rank {rank} is greater than max_lora_rank {self.most_rank}.")
        if self.forgotten():
            self.names[name] = self.adapters.names[-1] if self.adapters.names else None
        else:
            load_adapter(self.adapters, name, folder)
            self.names[name] = name
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> Answer:
        if name not in self.names:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        del self.names[name]
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def rpc(self, body: dict[str, Any]) -> Answer:
        assert body["method"] == "reload_weights"
        folder = Path(body["kwargs"]["weights_path"])
        if not folder.is_dir():
            return error(500, f"{folder} does not exist")
        if not self.forgotten():
            tokenizer = self.loaded.tokenizer
            tokenizer.save_pretrained(folder)  # vLLM reads the weights alone, and keeps its own tokenizer
            self.take(folder)
        return 200, {"results": [None]}

    def forgotten(self) -> bool:
        self.loads += 1
        return self.forgets_from is not None and self.loads > self.forgets_from

    def complete(self, body: dict[str, Any]) -> Answer:
        if body["model"] not in self.names:
            return error(404, f"The model `{body['model']}` does not exist.")
        prompt = tuple(body["prompt"])
        model = self.cache.setdefault((body["model"], prompt), self.model)
        with torch.no_grad(), self.adapters.use(self.names[body["model"]]):
            (rows,) = sample(
                model,
                [prompt],
                count=body["n"],
                max_new_tokens=body["max_tokens"],
                choice=Choice(body["temperature"]),
                seed=body["seed"],
                end_tokens=body["stop_token_ids"],
            )
        choices = [
            {
                "index": index,
                "text": "",
                "finish_reason": "stop" if row.ended else "length",
                "logprobs": {
                    "tokens": [f"token_id:{token}" for token in row.tokens],
                    "token_logprobs": [min(0.0, float(value)) for value in row.logprobs],
                },
                "token_ids": row.tokens.tolist(),
            }
            for index, row in enumerate(rows)
        ]
        written = sum(len(row.tokens) for row in rows)
        return 200, {"choices": choices, "usage": {"prompt_tokens": len(prompt), "completion_tokens": written}}

    def paths(self) -> list[str]:
        """What it was asked, completions left out."""
        return [path for path, _ in self.orders if path != "/v1/completions"]


def error(status: int, message: str) -> Answer:
    return status, {"error": {"message": message, "type": "Error", "code": status}}


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[VllmServer]:
    with VllmServer(folder, **settings) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
