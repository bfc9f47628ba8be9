"""Reads ranges of files, on disks and in buckets, from any thread.

Hidden state: a process keeps up to `MAX_OPEN` files open, whatever the number of datasets.
"""

import collections
import contextlib
import dataclasses
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from etils.epath import backend

from show1_jax.errors import InputError

MAX_OPEN = 64
RETRY_SECONDS = (0.5, 1, 2, 4, 8)  # before each new attempt, more or less
# What trying again does not change.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, InputError)

T = TypeVar("T")


def is_remote(path: str) -> bool:
    """Returns whether a path is in a bucket."""
    return "://" in path


def read_range(path: str, offset: int, size: int) -> bytes:
    """Reads `size` bytes from `offset` on.

    Raises:
      FileNotFoundError: if there is no such file.
      InputError: if it cannot be read, or ends before.
    """
    try:
        if is_remote(path):
            content = _remote(path, offset, offset + size)
        else:
            content = _local(path, offset, size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) != size:
        raise InputError(
            f"{path} has changed while it was used: it ends before byte "
            f"{offset + size}; start again"
        )
    return content


def read_file(path: str) -> bytes:
    """Reads a whole file; raises as `read_range` does."""
    try:
        if is_remote(path):
            return _remote(path, None, None)
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def retried(call: Callable[[], T], path: str) -> T:
    """Calls a function again after errors that may be over soon.

    Raises:
      InputError: if the last attempt fails, too. What trying again does not change is raised as it
        is.
    """
    for seconds in (*RETRY_SECONDS, None):
        try:
            return call()
        except _FINAL:
            raise
        except Exception as error:
            if seconds is None:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(f"{path} cannot be read: {reason}") from error
            time.sleep(seconds * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def filesystem(path: str) -> Any:
    """The fsspec file system of a path in a bucket, the one that epath uses.

    Raises:
      InputError: if the package for this kind of bucket is missing.
    """
    try:
        return backend.fsspec_backend.fs(path)
    except ImportError as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _remote(path: str, start: int | None, end: int | None) -> bytes:
    return retried(lambda: filesystem(path).cat_file(path, start=start, end=end), path)


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
