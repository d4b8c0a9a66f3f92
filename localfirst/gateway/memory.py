"""How the process gives memory back, so that the model gets it after a busy hour."""

from __future__ import annotations

import sys

LARGE_BYTES = 256 * 2**10
_M_MMAP_THRESHOLD = -3
"""The number of the parameter in glibc's malloc.h."""


def return_large_buffers() -> None:
    """
    Give every buffer of `LARGE_BYTES` and more a mapping of its own, which ends with it.

    Left alone, glibc raises that bound with each larger buffer that is freed, up to 32 MiB
    (mallopt(3), dynamic mmap threshold). Bodies lie in the heap from then on, small things
    come to lie between them, and what is freed there stays with the process. Where there is
    no such allocator nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_M_MMAP_THRESHOLD, LARGE_BYTES)
