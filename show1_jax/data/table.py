"""Columns of numbers and texts in one file, which readers map into memory.

The file is the columns one after the other, each from a multiple of 64 bytes on, then a JSON object
that says where they are, its length (8 bytes), its checksum (4 bytes) and `MAGIC`. So columns are
written as they come, and a file that was cut off is recognised.

Texts are two columns: NAME has their bytes (UTF-8), and NAME.ends where each ends. All columns
NAME.ends only grow. They are what `concatenate` has to add up.
"""

import contextlib
import itertools
import json
import mmap
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from show1_jax.errors import InputError, why

MAGIC = b"tab1"
_TRAILER = struct.Struct("<QI4s")
ENDS = ".ends"
_ALIGNMENT = 64
_CHUNK = 1 << 24  # bytes that are read, checked or copied at a time
_DAMAGE = (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError)

Columns = Mapping[str, np.ndarray]


class Table:
    """A table that is mapped into memory.

    Attributes:
      path: of its file, on a local disk.
      columns: by name, one-dimensional and read-only.
      checksums: CRC-32 of each column.
      about: what `Writer.close` was given.
    """

    def __init__(self, path: str, check: bool = True):
        """Opens a table.

        Args:
          path: of a file on a local disk.
          check: whether to compare the checksums, for which all of it is read.

        Raises:
          InputError: if the file is damaged.
        """
        self.path = path
        with _reading(path), open(path, "rb") as file:
            footer = _footer(file)
            if check:
                for name, column in footer["columns"].items():
                    if _checksum(file, column) != column["crc32"]:
                        raise ValueError(f"the checksum of {name} differs")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.about: dict[str, Any] = footer["about"]
            self.columns = {
                name: np.frombuffer(mapped, column["dtype"], column["length"], column["offset"])
                for name, column in footer["columns"].items()
            }
            self.checksums = {name: column["crc32"] for name, column in footer["columns"].items()}

    def __reduce__(self) -> tuple[type, tuple[str, bool]]:
        """Pickles only the path."""
        return Table, (self.path, False)

    def text(self, name: str, index: int) -> bytes:
        """The text of a row."""
        return self.texts(name, index, index + 1)[0]

    def texts(self, name: str, first: int, end: int) -> list[bytes]:
        """The texts of the rows from `first` to before `end`."""
        ends = self.columns[name + ENDS]
        start = int(ends[first - 1]) if first else 0
        places = [0, *(ends[first:end] - start).tolist()]
        content = self.columns[name][start : start + places[-1]].tobytes()
        return [content[begin:stop] for begin, stop in itertools.pairwise(places)]


class Writer:
    """Writes a table column by column."""

    def __init__(self, file: Any):
        """Begins a table in a file that is opened for writing bytes, and only written in order."""
        self._file, self._offset = file, 0
        self._columns: dict[str, dict[str, Any]] = {}

    def add(self, name: str, dtype: Any, chunks: Iterable[np.ndarray]) -> None:
        """Writes a column that is given in pieces."""
        self._write(b"\0" * (-self._offset % _ALIGNMENT))
        start, checksum, dtype = self._offset, 0, np.dtype(dtype)
        for chunk in chunks:
            content = np.ascontiguousarray(chunk, dtype).tobytes()
            checksum = zlib.crc32(content, checksum)
            self._write(content)
        self._columns[name] = {
            "dtype": dtype.str,
            "offset": start,
            "length": (self._offset - start) // dtype.itemsize,
            "crc32": checksum,
        }

    def close(self, about: Mapping[str, Any]) -> None:
        """Completes the table; `about` is kept as JSON. The file stays open."""
        footer = json.dumps({"columns": self._columns, "about": about}).encode()
        self._write(footer + _TRAILER.pack(len(footer), zlib.crc32(footer), MAGIC))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._offset += len(content)


@contextlib.contextmanager
def writing(path: epath.Path) -> Iterator[Writer]:
    """A writer of a file that appears when the context ends without an error, and else not at all.

    Raises:
      InputError: if it cannot be written.
    """
    partial = path.parent / f".{secrets.token_hex(4)}.partial"
    try:
        try:
            with partial.open("wb") as file:
                yield Writer(file)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {why(error)}") from error


def texts(name: str, values: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The two columns of texts."""
    ends = np.cumsum([len(value) for value in values], dtype=np.int64)
    return {name: np.frombuffer(b"".join(values), np.uint8), name + ENDS: ends}


def concatenate(paths: Sequence[str], writer: Writer) -> None:
    """Writes the rows of several tables, of which one piece at a time is in memory.

    Columns that some of them lack are filled with NaN there.

    Args:
      paths: of the tables, on a local disk.
      writer: of the new one.

    Raises:
      InputError: if one is damaged.
    """
    footers = []
    for path in paths:
        with _reading(path), open(path, "rb") as file:
            footers.append(_footer(file)["columns"])
    rows = [footer["size"]["length"] for footer in footers]
    kinds = {name: column["dtype"] for footer in footers for name, column in footer.items()}

    def pieces(name: str) -> Iterator[np.ndarray]:
        before = 0
        for path, footer, count in zip(paths, footers, rows, strict=True):
            if name not in footer:
                yield np.full(count, np.nan)
                continue
            with _reading(path), open(path, "rb") as file:
                column = footer[name]
                if _checksum(file, column) != column["crc32"]:
                    raise ValueError(f"the checksum of {name} differs")
                file.seek(column["offset"])
                found = np.fromfile(file, column["dtype"], column["length"])
            if name.endswith(ENDS):
                found += before
                before = int(found[-1]) if len(found) else before
            yield found

    for name, kind in kinds.items():
        writer.add(name, kind, pieces(name))


def take_texts(table: Table, name: str, rows: np.ndarray, writer: Writer) -> None:
    """Writes the texts of some rows, in their order."""
    blob, ends = table.columns[name], table.columns[name + ENDS]
    starts = ends[rows] - _lengths(ends)[rows]
    lengths = _lengths(ends)[rows]
    many = 1 << 16

    def pieces() -> Iterator[np.ndarray]:
        for first in range(0, len(rows), many):
            begins, sizes = starts[first : first + many], lengths[first : first + many]
            shift = np.repeat(begins - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
            yield blob[np.arange(len(shift)) + shift]

    writer.add(name, np.uint8, pieces())
    writer.add(name + ENDS, np.int64, [np.cumsum(lengths)])


def _lengths(ends: np.ndarray) -> np.ndarray:
    return np.diff(ends, prepend=0)


def read_about(path: str) -> dict[str, Any]:
    """What `Writer.close` was given; raises InputError if the file is damaged."""
    with _reading(path), open(path, "rb") as file:
        return _footer(file)["about"]


def _footer(file: BinaryIO) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    file.seek(max(size - _TRAILER.size, 0))
    length, checksum, magic = _TRAILER.unpack(file.read(_TRAILER.size))
    if magic != MAGIC or length > size - _TRAILER.size:
        raise ValueError("it was cut off")
    file.seek(size - _TRAILER.size - length)
    content = file.read(length)
    if zlib.crc32(content) != checksum:
        raise ValueError("the checksum of its last part differs")
    footer = json.loads(content)
    for column in footer["columns"].values():
        end = column["offset"] + column["length"] * np.dtype(column["dtype"]).itemsize
        if not 0 <= column["offset"] <= end <= size:
            raise ValueError("a column lies outside")
    return footer


def _checksum(file: BinaryIO, column: Mapping[str, Any]) -> int:
    """The checksum of a column, read piece by piece so that it does not fill the memory."""
    left, checksum = column["length"] * np.dtype(column["dtype"]).itemsize, 0
    file.seek(column["offset"])
    while left:
        content = file.read(min(left, _CHUNK))
        if not content:
            raise ValueError("it was cut off")
        checksum, left = zlib.crc32(content, checksum), left - len(content)
    return checksum


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, PermissionError):
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} is damaged: {reason}; remove it, and it is built again"
        ) from error
