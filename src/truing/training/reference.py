"""Log-probs of the frozen policy that a stage began with: computed beside the policy, kept where rows come again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from truing.core.batch import Batch, keep_completions
from truing.core.errors import GuardError
from truing.models.roles import Role
from truing.training.disk import on_disk
from truing.training.ranks import ALONE, Ranks
from truing.training.run_directory import move, sync

SEAL = "sha256"


class LogprobStore:
    """Log-probs, or other numbers of a row, by tree digest.

    The file's name hashes all else they depend on: model, adapter, precision. It holds the SHA-256 of its content, and
    one that is damaged is passed over.
    """

    def __init__(self, folder: Path, key: str, ranks: Ranks = ALONE) -> None:
        self.file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        self._ranks = ranks
        self._values: dict[str, np.ndarray] = {}
        self.damage: str | None = self._read() if ranks.first else None
        """Why the file that is there was passed over, in a sentence; None where it was not."""
        self._saved = len(self._values)
        self.exchange()

    def __contains__(self, digest: str) -> bool:
        return digest in self._values

    def __len__(self) -> int:
        return len(self._values)

    def missing(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Yield batches, and whether something of each has to be computed; for several ranks all of them or none."""
        if not self._ranks.several:
            yield from ((batch, not all(digest in self for digest in batch.digests)) for batch in batches)
            return
        own = list(batches)
        anything = not all(digest in self for batch in own for digest in batch.digests)
        everything = any(self._ranks.everyone(anything))
        yield from ((batch, everything) for batch in own)

    def get(self, digests: Iterable[str]) -> np.ndarray:
        """Concatenate the log-probs of some trees, float32 [K]."""
        return np.concatenate([self._values[digest] for digest in digests])

    def put(self, digest: str, values: np.ndarray) -> None:
        """Keep the log-probs of one tree, float32."""
        self._values.setdefault(digest, values)

    def save(self) -> None:
        """Write the file whole, in place of the one that was read, if there is anything new."""
        if len(self._values) == self._saved or not self._ranks.first:
            return
        staging = self.file.with_suffix(f".{os.getpid()}.part")  # runs may share the folder
        with on_disk(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            stored = self._as_arrays()
            save_file(stored, staging, metadata={SEAL: _seal(stored)})
            sync(staging)
            move(staging, self.file)
        self._saved = len(self._values)

    def exchange(self) -> None:
        """Have all that any rank has; what an earlier rank says of a row wins."""
        if not self._ranks.several:
            return
        own = {name: torch.from_numpy(array) for name, array in self._as_arrays().items()}
        parts = self._ranks.gathered(own)
        self._values = {}
        for part in parts:
            self._take({name: tensor.numpy() for name, tensor in part.items()})

    def _as_arrays(self) -> dict[str, np.ndarray]:
        digests = np.frombuffer(b"".join(bytes.fromhex(d) for d in self._values), dtype=np.uint8).reshape(-1, 32)
        lengths = np.array([len(v) for v in self._values.values()], dtype=np.int64)
        logprobs = np.concatenate([np.zeros(0, dtype=np.float32), *self._values.values()])
        return {"digests": digests.copy(), "lengths": lengths, "logprobs": logprobs}

    def _read(self) -> str | None:
        if not self.file.is_file():
            return None
        try:
            with safe_open(self.file, framework="numpy") as opened:
                stored: dict[str, np.ndarray] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
                seal = (opened.metadata() or {}).get(SEAL)
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError) as failure:
            return f"{self.file} is damaged ({failure}) and is computed again"
        if seal != _seal(stored):
            return f"{self.file} is damaged (it does not match its SHA-256) and is computed again"
        self._take(stored)
        return None

    def _take(self, stored: Mapping[str, np.ndarray]) -> None:
        digests, lengths, logprobs = stored["digests"], stored["lengths"], stored["logprobs"]
        if not len(digests):  # which np.split would make one part of
            return
        for digest, part in zip(digests, np.split(logprobs, np.cumsum(lengths)[:-1]), strict=True):
            self.put(digest.tobytes().hex(), part)


def _seal(stored: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes, formats and numbers."""
    total = hashlib.sha256()
    for name, array in sorted(stored.items()):
        total.update(f"{name} {array.dtype} {array.shape};".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


class ReferenceLogprobs:
    """Fills the column `ref_logprobs`, float32 [K], from the store where it can, else from the reference itself.

    `apart` says which completions, of C, the policy will compute in a pass of their own. The reference then does the
    same: in half precision another company gives other last digits, and a first loss that is not what it must be.
    """

    def __init__(
        self,
        role: Role,
        store: LogprobStore | None,
        apart: Callable[[Batch], Sequence[bool] | None] = lambda batch: None,
    ) -> None:
        self._role: Role | None = role
        self._store = store
        self._apart = apart

    def __call__(self, batch: Batch) -> Batch:
        if self._store is None:
            return batch.with_columns(ref_logprobs=self._computed(batch))
        if not all(digest in self._store for digest in batch.digests):
            self._keep(batch, self._computed(batch))
        # What is kept wins over what was computed just now, so that the number of a row never depends on its company.
        kept = torch.from_numpy(self._store.get(batch.digests))
        return batch.with_columns(ref_logprobs=kept.to(batch.tokens.device))

    def save(self) -> None:
        """Write what was kept, so that a resumed run finds the very same numbers."""
        if self._store is not None:
            self._store.save()

    def precompute(self, batches: Iterable[Batch], on_batch: Callable[[int], None]) -> int:
        """Fill the store for all batches, then let go of the reference; return how many trees were new.

        Training packs the first pass over the data in the same way, so that its first loss has no rounding in it.
        """
        if self._store is None or self._role is None:
            return 0
        before = len(self._store)
        for batch, missing in self._store.missing(batches):
            if missing:
                self._keep(batch, self._computed(batch))
            on_batch(len(batch.digests))
        self._store.exchange()
        self._store.save()
        self._role = None
        return len(self._store) - before

    def _computed(self, batch: Batch) -> Tensor:
        if self._role is None:
            raise GuardError("a row has no precomputed reference log-probs, and the reference is no longer in memory")
        apart = self._apart(batch)
        with torch.no_grad():
            if apart is None or all(apart) or not any(apart):
                return self._role.outputs(batch).logprobs
            found = torch.empty(batch.num_targets, dtype=torch.float32, device=batch.tokens.device)
            for keep in (list(apart), [not alone for alone in apart]):
                own = torch.tensor(keep, device=batch.tokens.device)[batch.target_completion]
                found[own] = self._role.outputs(keep_completions(batch, keep)).logprobs
            return found

    def _keep(self, batch: Batch, values: Tensor) -> None:
        if self._store is not None:
            parts = np.split(values.cpu().numpy(), _tree_ends(batch))
            for digest, part in zip(batch.digests, parts, strict=True):
                self._store.put(digest, part)


def _tree_ends(batch: Batch) -> np.ndarray:
    """Where each tree's targets end on the K axis, the last left out, as `np.split` wants them."""
    counts = np.zeros(len(batch.digests), dtype=np.int64)
    np.add.at(counts, batch.completion_tree.cpu().numpy(), np.asarray(batch.target_counts))
    return np.cumsum(counts)[:-1]
