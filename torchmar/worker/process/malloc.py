"""Keeping freed memory for the next batch, and returning it to the system while there is none."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import partial

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # values from malloc.h
_KEPT = 1 << 29  # bytes at the end of the heap; if more are free, all are returned


def keep_freed_memory() -> Callable[[], object] | None:
    """Let malloc keep memory that is freed from now on; return a function that returns it to the system.

    By default, glibc returns every block above 32 MB, and at first also smaller ones, as soon as it is freed, so that
    the
    system clears each page again for the next batch: a fifth of the time of ResNet-18 for 16 images. Existing settings
    of the environment are kept (``MALLOC_...``, ``glibc.malloc`` in ``GLIBC_TUNABLES``).

    Returns:
        None if malloc is not glibc's.
    """
    libc = ctypes.CDLL(None)
    try:
        trim, set_option = libc.malloc_trim, libc.mallopt
    except AttributeError:
        return None
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" not in tunables and not any(name.startswith("MALLOC_") for name in os.environ):
        set_option(_MMAP_MAX, 0)
        set_option(_TRIM_THRESHOLD, _KEPT)
    return partial(trim, 0)
