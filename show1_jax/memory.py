"""How much memory is free, and what the C library does with memory that arrays no longer need."""

import contextlib
import ctypes
import re
import sys
from collections.abc import Iterator

import jax
from etils.epath import Path

# Of glibc's malloc.h: what `mallopt` sets, and defaults.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8
DEFAULT_TRIM_THRESHOLD, DEFAULT_MMAP_MAX = 128 * 2**10, 65536


def return_freed_memory() -> None:
    """Makes glibc return the memory of freed arrays of 1 MiB or more to the system.

    By default it keeps arrays below 32 MiB, which are nearly all arrays of a network.
    """
    # One heap for all threads: `reuse_freed_memory` cannot keep large arrays in theirs.
    _glibc("mallopt", ARENA_MAX, 1)
    _glibc("mallopt", MMAP_THRESHOLD, 2**20)


@contextlib.contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Makes glibc keep the memory of freed arrays for the next ones, and return it at the end.

    For loops over arrays of the same sizes. Memory that is new to a process is given to it in
    pages of 4 KiB, which can take longer than to read it from a disk and to compute with it.
    """
    _glibc("mallopt", MMAP_MAX, 0)
    _glibc("mallopt", TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        _glibc("mallopt", MMAP_MAX, DEFAULT_MMAP_MAX)
        _glibc("mallopt", TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
        _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    """Calls a function of glibc, where that is the C library."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)


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
