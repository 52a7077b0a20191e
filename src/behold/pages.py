"""What the system is told about memory: which of it to keep in large pages, to make ready, or to take back.

Nothing but speed depends on it. Only Linux is told; elsewhere, and on systems too old for an advice, nothing happens.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import mmap
import sys
from collections.abc import Callable


class Advice(enum.IntEnum):
    """Of madvise(2); the module mmap does not name all."""

    TAKE_BACK = 4  # MADV_DONTNEED: private pages of a file are read from it again
    LARGE = 14  # MADV_HUGEPAGE
    READ = 22  # MADV_POPULATE_READ, since Linux 5.14
    WRITE = 23  # MADV_POPULATE_WRITE, as old


def advise(address: int, n_bytes: int, advice: Advice) -> bool:
    """Tell it of the whole pages in [address, address + n_bytes). False where it was not told or did not take it."""
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    system = _system()
    return system is not None and length > 0 and system(begin, length, advice) == 0


@functools.cache
def _system() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    call = ctypes.CDLL(None).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return call
