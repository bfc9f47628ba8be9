"""Writes PyTorch weight files one tensor at a time, in any order."""

import json
import os
import struct
import types
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import IO, Any

import numpy as np
from etils.epath import Path

from show1_jax.checkpoints.torch_files import (
    SAFETENSORS_NAMES,
    Stored,
    import_torch,
    read_header,
)


class WeightWriter:
    """Writes a `.bin` or `.safetensors` file whose tensors' shapes are known in advance.

    A `.bin` stores tied tensors once.
    """

    def __init__(
        self,
        file: Path,
        tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        tied: Mapping[str, str] = types.MappingProxyType({}),
        metadata: Mapping[str, str] = types.MappingProxyType({}),
    ):
        """Writes the header, and leaves room for the tensors.

        Args:
          file: to write, on a disk; an object in a bucket cannot be written in any order.
          tensors: shape and dtype of each tensor by key, in the file's order.
          tied: maps keys to other keys of `tensors` that hold the same tensor.
          metadata: of a `.safetensors` file; ignored for a `.bin`.
        """
        if file.suffix == ".bin":
            _lay_out_bin(file, tensors, tied)
            self._places = read_header(file)
        else:
            self._places = _lay_out_safetensors(file, tensors, metadata)
        self._file = file
        self._checksums: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; tied ones count for each key."""
        return sum(place.nbytes for place in self._places.values())

    def write(self, key: str, array: np.ndarray) -> None:
        """Writes a tensor; in a `.bin` this also writes those that are tied to it."""
        place = self._places[key]
        assert (array.shape, array.dtype) == (place.shape, place.dtype), key
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        if self._file.suffix == ".bin":
            if place.offset in self._checksums:
                return
            self._checksums[place.offset] = zlib.crc32(flat)
        with open(self._file, "r+b") as stream:
            stream.seek(place.offset)
            stream.write(flat)

    def finish(self) -> None:
        """Completes the file, and waits until its bytes are on the disk."""
        with open(self._file, "r+b") as stream:
            if self._file.suffix == ".bin":
                _put_checksums(stream, self._checksums)
            stream.flush()
            os.fsync(stream.fileno())


def write_file(
    file: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Writes one `.bin` or `.safetensors` file.

    A `.bin` stores an array given twice once, and no metadata.
    """
    arrays = dict(tensors)
    first: dict[int, str] = {}
    for key, array in arrays.items():
        first.setdefault(id(array), key)
    tied = {key: first[id(array)] for key, array in arrays.items() if first[id(array)] != key}
    described = {key: (array.shape, array.dtype) for key, array in arrays.items()}
    writer = WeightWriter(file, described, tied, metadata)
    for key, array in arrays.items():
        writer.write(key, array)
    writer.finish()


def _lay_out_safetensors(
    file: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    metadata: Mapping[str, str],
) -> dict[str, Stored]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    places: dict[str, Stored] = {}
    offset = 0
    for key, (shape, dtype) in tensors.items():
        places[key] = Stored(file, offset, dtype, shape)
        header[key] = {
            "dtype": SAFETENSORS_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + places[key].nbytes],
        }
        offset += places[key].nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        stream.truncate(8 + len(text) + offset)
    return {
        key: place._replace(offset=8 + len(text) + place.offset) for key, place in places.items()
    }


def _lay_out_bin(
    file: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    tied: Mapping[str, str],
) -> None:
    torch = import_torch(file)
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Fake tensors take no memory, and PyTorch leaves room for their bytes.
    with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
        state = {
            key: torch.empty(shape, dtype=getattr(torch, dtype.name))
            for key, (shape, dtype) in tensors.items()
            if key not in tied
        }
        torch.save({key: state[tied.get(key, key)] for key in tensors}, file)


def _put_checksums(file: IO[bytes], checksums: Mapping[int, int]) -> None:
    """Enters the CRC-32 of what was written at each offset into a zip file.

    PyTorch checks none of them, but others that read zip files do.
    """

    def read(at: int, form: str) -> tuple[int, ...]:
        file.seek(at)
        return struct.unpack(form, file.read(struct.calcsize(form)))

    def write(at: int, checksum: int) -> None:
        file.seek(at)
        file.write(struct.pack("<I", checksum))

    with zipfile.ZipFile(file) as archive:
        entries, central = archive.infolist(), archive.start_dir
    for entry in entries:
        # A local header is 30 bytes, a name and a field that aligns the data.
        data = entry.header_offset + 30 + sum(read(entry.header_offset + 26, "<HH"))
        if data in checksums:
            write(central + 16, checksums[data])
            behind = data + entry.file_size
            follows = read(behind, "<4s") == (b"PK\x07\x08",)  # the checksum, in a descriptor
            write(behind + 4 if follows else entry.header_offset + 14, checksums[data])
        # A central header is 46 bytes and three fields, whose lengths it has.
        central += 46 + sum(read(central + 28, "<HHH"))
