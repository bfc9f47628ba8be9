"""What the C library does with memory that arrays no longer need."""

import ctypes
import sys

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD in glibc's malloc.h


def return_freed_memory() -> None:
    """Makes the C library give every array of a MiB or more back to the system once it is freed.

    glibc would keep those below 32 MiB, which is nearly all of a network.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(MMAP_THRESHOLD, 2**20)
