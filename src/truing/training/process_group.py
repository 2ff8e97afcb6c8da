"""Several processes that train one recipe: torch's process group, and how they begin and end together.

torch.distributed is imported here, when there are several processes, and nowhere before.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from truing.core.errors import GuardError, MachineError, TruingError
from truing.training.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

BUCKET = 2**24
"""Numbers of gradients that are added up over the ranks at a time: 64 MiB."""

FAILED = "truing/failed"
"""The key of the store that counts the ranks that have failed."""

LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe", "Socket")
"""Words of the errors that torch raises in a rank when another one is gone."""

GRACE = 5.0
"""Seconds that a rank waits for the launcher to end it, so that what another one does or says comes first."""


@dataclass(frozen=True, slots=True)
class Joined(Ranks):
    """One of several processes. What is small goes over the CPU as bytes of JSON or safetensors."""

    def everyone(self, value: Any) -> list[Any]:
        return [json.loads(each) for each in self._exchanged(json.dumps(value).encode())]

    def from_first(self, value: Any) -> Any:
        return json.loads(self._exchanged(json.dumps(value).encode() if self.first else b"null")[0])

    def gathered(self, tensors: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        own = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        return [load(each) for each in self._exchanged(own)]

    def add(self, tensors: Sequence[Tensor]) -> None:
        import torch.distributed as dist

        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def barrier(self) -> None:
        self._exchanged(b"")

    def _exchanged(self, content: bytes) -> list[bytes]:
        """The bytes of every rank."""
        import torch.distributed as dist

        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(content)]))
        longest = max(int(size) for size in sizes)
        if longest == 0:
            return [b""] * self.world
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(content)] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[: len(content)]
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    load = 0
    for tensor in tensors:
        if bucket and (load + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, load = [], 0
        bucket.append(tensor)
        load += tensor.numel()
    if bucket:
        yield bucket


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that a launcher has started beside this one; without a launcher there are none.

    Of errors that ranks meet, the first is raised; a rank that fails after it, or because of it, ends without a word.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    import torch.distributed as dist

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise MachineError(
                f"process {local} of this machine has no GPU: it has {torch.cuda.device_count()}; start that many "
                "processes (--nproc), or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on CPUs"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    store = dist.distributed_c10d._get_default_store()
    try:
        yield Joined(dist.get_rank(), dist.get_world_size(), local, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    except (TruingError, RuntimeError) as failure:
        _end_quietly_after_another(failure, store, dist.get_rank())
        raise
    dist.destroy_process_group()


def restarted(ranks: Ranks) -> bool:
    """Whether the launcher has started any of the ranks anew, after a failure."""
    return any(ranks.everyone(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))))


def _end_quietly_after_another(failure: Exception, store: Store, rank: int) -> None:
    """Leave with the failure's code, and without its message, unless this rank is the first to fail.

    Raises MachineError where another rank is gone, and the launcher does not end this one for it.
    """
    if not isinstance(failure, TruingError) and _is_loss(failure):
        time.sleep(GRACE)
        raise MachineError(f"process {rank} has lost the others: {str(failure).splitlines()[0]}") from failure
    try:
        earlier = store.add(FAILED, 1) > 1
    except RuntimeError:  # the first rank keeps the store, and is gone
        earlier = True
    if isinstance(failure, GuardError) and rank > 0:
        time.sleep(GRACE)  # the first rank writes the report of what a guard has stopped
    if earlier:
        sys.exit(failure.exit_code if isinstance(failure, TruingError) else 1)


def _is_loss(failure: Exception) -> bool:
    return any(sign in str(failure) for sign in LOST)
