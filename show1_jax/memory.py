"""How much memory is free, and what the C library does with memory that arrays no longer need."""

import ctypes
import re
import sys
from pathlib import Path

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
    free = [_number("/proc/meminfo", r"MemAvailable:\s+(\d+) kB") * 1024]
    # A container may have less than the machine.
    if limit := _number("/sys/fs/cgroup/memory.max", r"(\d+)"):
        free.append(limit - _number("/sys/fs/cgroup/memory.current", r"(\d+)"))
    return min(free)


def _number(path: str, pattern: str) -> int:
    """A number in a file of the system; 0 where there is none."""
    try:
        match = re.search(pattern, Path(path).read_text())
    except OSError:
        return 0
    return int(match[1]) if match else 0
