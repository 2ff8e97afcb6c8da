"""Tells that memory has run out from other failures, and says what was being computed when it did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from truing.core.batch import Batch
from truing.core.errors import OutOfMemory

SIGNS = ("DefaultCPUAllocator", "can't allocate memory", "bad_alloc", "could not create a memory", "out of memory")
"""Words of a RuntimeError by which libraries say so; torch has an error of its own for GPUs alone."""

MOST_NAMED = 3


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn running out of memory into an OutOfMemory that names what was being done."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as failure:
        raise OutOfMemory(f"out of memory {what}") from failure
    except RuntimeError as failure:
        if not any(sign in str(failure) for sign in SIGNS):
            raise
        raise OutOfMemory(f"out of memory {what}") from failure


@contextmanager
def naming_rows(step: int, batch: Batch) -> Iterator[None]:
    """The same for a micro-batch of a step, counted from 1, with its rows."""
    with naming(f"in step {step}, in a micro-batch of {batch.layout.size:,} tokens{_rows(batch)}"):
        yield


def _rows(batch: Batch) -> str:
    named = [str(origin) for origin in batch.origins if origin is not None]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return f" ({', '.join(named[:MOST_NAMED])}{more})" if named else ""
