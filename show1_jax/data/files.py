"""Reads ranges of files, on disks and in buckets, from any thread.

Hidden state: a process keeps up to `MAX_OPEN` files open, whatever the number of datasets.
"""

import collections
import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator
from typing import Any

from show1_jax.errors import InputError, why
from show1_jax.paths import as_path, in_bucket

MAX_OPEN = 64


def read_range(path: str, offset: int, size: int) -> bytes:
    """Reads `size` bytes from `offset` on.

    Raises:
      FileNotFoundError: if there is no such file.
      InputError: if it cannot be read, or ends before.
    """
    try:
        if in_bucket(path):
            content = _remote(path, offset, offset + size)
        else:
            content = _local(path, offset, size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {why(error)}") from error
    if len(content) != size:
        raise InputError(
            f"{path} has changed while it was used: it ends before byte "
            f"{offset + size}; start again"
        )
    return content


def read_file(path: str) -> bytes:
    """Reads a whole file; raises as `read_range` does."""
    try:
        if in_bucket(path):
            return _remote(path, None, None)
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {why(error)}") from error


def bucket(path: str) -> Any:
    """A `BucketPath`; raises InputError if what reads buckets is not installed."""
    return as_path(path)


def _remote(path: str, start: int | None, end: int | None) -> bytes:
    return bucket(path).read_bytes(start, end)


def _local(path: str, offset: int, size: int) -> bytes:
    with _open_files.open(path) as descriptor:
        content = os.pread(descriptor, size, offset)
        while len(content) < size and (more := os.pread(
            descriptor, size - len(content), offset + len(content)
        )):  # fmt: skip
            content += more
        return content


@dataclasses.dataclass
class _Entry:
    descriptor: int
    users: int = 0


class OpenFiles:
    """Files that are open for reading; those not used for longest are closed first."""

    def __init__(self, limit: int):
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[str, _Entry] = collections.OrderedDict()

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[int]:
        """Gives a file's descriptor, which is for `os.pread` alone: threads share it."""
        with self._lock:
            entry = self._entries.get(path)
            if entry is None:
                entry = self._entries[path] = _Entry(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self._entries.move_to_end(path)
            entry.users += 1
            self._close_some()
        try:
            yield entry.descriptor
        finally:
            with self._lock:
                entry.users -= 1
                self._close_some()

    def close_unused(self) -> None:
        """Closes the files that nobody is reading."""
        with self._lock:
            self._close_some(0)

    def _close_some(self, limit: int | None = None) -> None:
        limit = self._limit if limit is None else limit
        unused = (path for path, entry in list(self._entries.items()) if not entry.users)
        while len(self._entries) > limit and (path := next(unused, None)) is not None:
            os.close(self._entries.pop(path).descriptor)


_open_files = OpenFiles(MAX_OPEN)


def forget() -> None:
    """Closes files that others may have replaced: what was opened stays as it was."""
    _open_files.close_unused()
