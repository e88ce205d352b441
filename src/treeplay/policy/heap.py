"""Keep memory that was freed, instead of asking the system for it again at every step.

A step frees the large tensors that the next one asks for. The C library of Linux (glibc) maps every
block above some 30 MB anew and cuts off the end of its heap whenever enough of it is free; each
time all those pages are faulted in and filled with zeros. For a batch of logits over a large
vocabulary, or a tree of some thousand tokens, that is a sixth to a third of the time. Kept memory
is given back when a training ends. What is computed is the same to the last bit.

Nothing happens where another C library is at work, or where the environment already tunes this one
(``MALLOC_TRIM_THRESHOLD_`` and the like).
"""

from __future__ import annotations

import ctypes
import os
import platform

# Numbers of glibc's settings (malloc.h), and blocks of how many bytes are still mapped anew.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MAPPED = 1 << 30


def keep_freed() -> bool:
    """From now on this process keeps what it frees; returns whether that could be arranged."""
    if not _glibc() or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    set_to = ctypes.CDLL(None).mallopt
    return bool(set_to(MMAP_THRESHOLD, MAPPED) and set_to(TRIM_THRESHOLD, -1))


def give_back() -> None:
    """Return to the system what is free now."""
    if _glibc():
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes = [ctypes.c_size_t]
        trim(0)


def _glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
