"""How a worker's C library gives memory back between steps: not at all, or every step pays for it again.

Dask's nannies set ``MALLOC_TRIM_THRESHOLD_`` to 64 KiB, and setting it ends glibc's own adaptation: every array above
128 KiB is then mapped and unmapped anew, which took more than half of a search's time in page faults.
"""

from __future__ import annotations

import ctypes
import functools
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
KEPT_BYTES, MAPPED_BYTES = 2**28, 2**25
"""Free memory that is kept at the top of a heap, and from where on an array is a mapping of its own (glibc's most)."""


@functools.cache
def keep_freed_memory() -> bool:
    """Have this process take freed memory again, once; not where its environment says otherwise, or without glibc.

    Returns
    -------
    bool
        whether that was asked for.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT_BYTES)) and bool(mallopt(MMAP_THRESHOLD, MAPPED_BYTES))
