"""How a policy's weights reach a vLLM server that runs beside the training: through a folder that both can read.

Written against vLLM 0.33. Its cache of prompts is keyed by an adapter's name, and not by its content, so each version
of an adapter has a name of its own; whole weights have none, so there the cache is emptied. Whether the server really
samples from them is for `following` to find out.
"""

from __future__ import annotations

import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from truing.core.errors import InputError, MachineError
from truing.rl.completion_server import CompletionServer, Route

DEV_MODE = "start it with VLLM_SERVER_DEV_MODE=1, which it needs to take whole weights, and let it read the folder "
DEV_MODE += "that they are left in (rollout.server.folder and seen_as)"
UNLOAD = Route("/v1/unload_lora_adapter", harmless_twice=True)
RELOAD = Route("/collective_rpc", harmless_twice=False, remedy=DEV_MODE)
RESET = Route("/reset_prefix_cache", harmless_twice=True, remedy=DEV_MODE)


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights that a policy trains."""

    tensors: Sequence[Tensor]
    write: Callable[[Path], None]
    """Leaves them in a new folder: an adapter as `peft` reads it, or a model as `transformers` does."""

    @torch.no_grad()
    def fingerprint(self) -> tuple[float, ...]:
        """A number a tensor that changes with it: its sum in float64."""
        sums = [tensor.detach().sum(dtype=torch.float64) for tensor in self.tensors]
        return tuple(torch.stack([total.cpu() for total in sums]).tolist())


class ServedPolicy(ABC):
    """A server's copy of the policy, brought up to date where the policy has moved."""

    def __init__(self, server: CompletionServer, weights: Weights, folder: Path, seen_as: str | None) -> None:
        """Versions are left in a new folder within `folder`, which the server sees as `seen_as`."""
        self._server = server
        self._weights = weights
        self._called = f"truing-{secrets.token_hex(4)}"  # a server may still hold adapters of a run that was killed
        self._folder = folder / self._called
        self._seen = PurePosixPath(seen_as or folder.absolute()) / self._called
        self._number = 0
        self._sent: tuple[float, ...] | None = None

    def update(self) -> bool:
        """Bring the policy as it is now to the server; whether that was needed."""
        now = self._weights.fingerprint()
        if now == self._sent:
            return False
        before, self._sent = self._number, None
        self._number += 1
        name = str(self._number)
        self._weights.write(self._folder / name)
        self._load(name, str(self._seen / name))
        self._sent = now
        shutil.rmtree(self._folder / str(before), ignore_errors=True)
        return True

    def close(self) -> None:
        """Delete what was left for the server."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @abstractmethod
    def _load(self, name: str, path: str) -> None:
        """Have the server sample from the version in a folder, called so by it."""


class ServedAdapter(ServedPolicy):
    """A LoRA policy: each version is an adapter of its own name, and takes the place of the one before."""

    def __init__(
        self, server: CompletionServer, weights: Weights, folder: Path, seen_as: str | None, *, rank: int
    ) -> None:
        super().__init__(server, weights, folder, seen_as)
        self._base = server.model
        self._route = Route(
            "/v1/load_lora_adapter",
            harmless_twice=False,
            remedy="start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and --max-lora-rank of at least "
            f"{rank}, on the stage's own base, and let it read {self._seen} (rollout.server.folder and seen_as)",
        )

    def close(self) -> None:
        self._unload()
        super().close()

    def _load(self, name: str, path: str) -> None:
        self._unload()  # first, for the server may have room for one
        adapter = f"{self._base}-{self._called}-{name}"
        self._server.order(self._route, {"lora_name": adapter, "lora_path": path})
        self._server.model = adapter

    def _unload(self) -> None:
        if self._server.model == self._base:
            return
        # It may have let go of it already, or be gone itself, which the next request will say.
        with suppress(InputError, MachineError):
            self._server.order(UNLOAD, {"lora_name": self._server.model})
        self._server.model = self._base


class ServedModel(ServedPolicy):
    """A policy of full weights, which the server reads from disk in the place of its own."""

    def _load(self, name: str, path: str) -> None:
        self._server.order(RELOAD, {"method": "reload_weights", "kwargs": {"weights_path": path}})
        self._server.order(RESET, {})
