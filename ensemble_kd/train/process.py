"""What a process of a worker sets before it trains: threads, and how freed memory is kept."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# glibc's malloc.h; what is set here is for this process alone.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER = -1
DEFAULTS = ((M_MMAP_MAX, 65536), (M_TRIM_THRESHOLD, 128 * 1024), (M_TOP_PAD, 128 * 1024))
PAD = 64 * 2**20
"""Bytes by which the heap grows at a time."""
WORKER = {"MALLOC_ARENA_MAX": "1"}
"""What a worker's environment needs from its start: with a heap of its own, which ends at 64 MiB, the thread
that trains would have larger blocks mapped all the same."""


def prepare(threads: float) -> None:
    """For a process of our own: torch's threads, and memory that is kept from step to step."""
    torch.set_num_threads(max(1, int(threads)))
    keep_freed_memory()


@contextmanager
def borrowed(threads: float) -> Iterator[None]:
    """`prepare` for as long as a process that is not ours works as a worker does.

    Afterwards its threads and its random state are as they were, and freed memory is given back.
    """
    before, state = torch.get_num_threads(), torch.get_rng_state()
    prepare(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)
        give_back_memory()


def give_back_memory() -> None:
    """Undo `keep_freed_memory`: what is freed now and from now on goes back to the system."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if not sys.platform.startswith("linux"):
        return
    try:
        library = ctypes.CDLL(None)
        for pair in DEFAULTS:
            library.mallopt(*pair)
        library.malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


def keep_freed_memory() -> bool:
    """Keep what is freed for the next step, in place of giving it back; False where that is not possible.

    glibc maps a block of more than 32 MiB anew whenever it is asked for, and the system then clears each page
    of it. For the gradient of an embedding of 32,768 x 256 that takes more of a step than all arithmetic: 11
    against 26 steps a second were measured (one thread, AMD EPYC). The price: the process does not shrink.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(*pair) for pair in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, PAD)))
