"""How much memory is free, and what the C library does with memory that arrays no longer need."""

import ctypes
import os
import sys

import jax

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD in glibc's malloc.h


def return_freed_memory() -> None:
    """Makes glibc return the memory of freed arrays of 1 MiB or more to the system.

    By default it keeps arrays below 32 MiB, which are nearly all arrays of a network.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(MMAP_THRESHOLD, 2**20)


def free_memory() -> int:
    """The bytes that are free on the default backend's devices: of one device, or of the host."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # of systems that do not say
        return 0
