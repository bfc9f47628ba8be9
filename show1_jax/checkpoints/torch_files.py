"""Reads PyTorch weight files one tensor at a time.

Files are never mapped into memory or read as a whole. Their headers say where each tensor is, and
its bytes are read on request.
"""

import dataclasses
import json
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils.epath import Path

from show1_jax.checkpoints.networks import read_json
from show1_jax.errors import InputError
from show1_jax.files import open_bytes, read_range, same_file, size_of

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "weights")
# If a folder has several, full precision comes first.
ENDINGS = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")

# File names that a checkpoint may use: with these endings, and in its own folder.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,200}\.(bin|safetensors)", re.ASCII)
_INDEX_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,200}\.index(\.[\w-]+)?\.json", re.ASCII)

# Errors that unpickling raises for damaged bytes; its documentation gives no complete list.
DAMAGE: tuple[type[Exception], ...] = (RuntimeError, EOFError, OSError, ValueError, TypeError)
DAMAGE += (LookupError, AttributeError, AssertionError, struct.error)

SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
CHUNK = 2**24  # bytes that are compared at once
MAX_DIMENSIONS = 8  # of a tensor; NumPy allows 64
MAX_HEADER = 100 * 10**6  # bytes; the safetensors library has the same limit
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


class Stored(NamedTuple):
    """Where a contiguous tensor is stored."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Reads the tensor.

        Raises:
          InputError: if the file is truncated or cannot be read.
        """
        try:
            content = read_range(self.file, self.offset, self.nbytes)
        except OSError as error:
            raise InputError(f"{self.file} cannot be read: {error.strerror}") from None
        if len(content) != self.nbytes:
            raise InputError(f"{self.file} is truncated; copy it again")
        return np.frombuffer(content, self.dtype).reshape(self.shape)


def same_tensors(
    one: Mapping[str, Stored], other: Mapping[str, Stored], note: Callable[[int], None]
) -> bool:
    """Returns whether two networks' tensors are equal in key, dtype, shape and every bit.

    Tensors at the same place of the same file, for example through hard links, are not read.

    Args:
      one: tensors of a network.
      other: tensors of another network.
      note: called with the number of bytes that were compared since the last call.

    Raises:
      InputError: if the tensors cannot be read.
    """
    if one.keys() != other.keys() or any(
        (own.dtype, own.shape) != (other[key].dtype, other[key].shape) for key, own in one.items()
    ):
        return False
    return all(_same_bytes(own, other[key], note) for key, own in one.items())


def _same_bytes(one: Stored, other: Stored, note: Callable[[int], None]) -> bool:
    try:
        if one.offset == other.offset and same_file(one.file, other.file):
            note(one.nbytes)
            return True
        with open_bytes(one.file) as first, open_bytes(other.file) as second:
            first.seek(one.offset)
            second.seek(other.offset)
            for start in range(0, one.nbytes, CHUNK):
                size = min(CHUNK, one.nbytes - start)
                if first.read(size) != second.read(size):
                    return False
                note(size)
    except OSError as error:
        raise InputError(f"{error.filename or one.file} cannot be read: {error.strerror}") from None
    return True


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The weights of a network's folder: the index of shards, if any, and the tensors by key."""

    index: Path | None
    tensors: dict[str, Stored]


def find_weights(folder: Path) -> WeightFiles:
    """Finds a network's weights: `.safetensors` or `.bin`, whole or sharded, or `.fp16.`.

    Raises:
      InputError: if there are no weights, or a file is damaged.
    """
    incomplete = []
    for ending in ENDINGS:
        for stem in STEMS:
            file = folder / (stem + ending)
            if file.is_file():
                return WeightFiles(None, read_header(file))
            # The index of model.fp16.safetensors is model.safetensors.index.fp16.json.
            kind = ending.rsplit(".", 1)[1]
            variant = ".fp16" if "fp16" in ending else ""
            index = folder / f"{stem}.{kind}.index{variant}.json"
            if not index.is_file():
                continue
            # A partial download may have indices of shards that are missing.
            missing = [name for name in _shards(index) if not (folder / name).is_file()]
            if not missing:
                return WeightFiles(index, _sharded(index))
            incomplete.append(f"{folder / missing[0]} is missing, but {index.name} names it")
    raise InputError(
        incomplete[0]
        if incomplete
        else f"{folder} has no weights; looked for {', '.join(STEMS)} "
        f"with {', '.join(ENDINGS)} or an index of shards"
    )


def is_file_name(name: Any, index: bool = False) -> bool:
    """Returns whether a name is allowed for a weight file, or for an index of shards.

    It must be a string, and cannot lead out of the checkpoint's folder.
    """
    pattern = _INDEX_NAME if index else _FILE_NAME
    return isinstance(name, str) and pattern.fullmatch(name) is not None


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index} has no weight_map")
    for name in weight_map.values():
        if not is_file_name(name):
            raise InputError(
                f"{index} has the shard name {name!r}, but names must be plain, end in .bin or "
                ".safetensors, and be of files beside it"
            )
    return list(dict.fromkeys(weight_map.values()))


def _sharded(index: Path) -> dict[str, Stored]:
    """Lists all tensors of the shards in the index's order, without checking them."""
    held: dict[str, Stored] = {}
    for name in _shards(index):
        held |= read_header(index.parent / name)
    listed = [key for key in read_json(index)["weight_map"] if key in held]
    return {key: held[key] for key in [*listed, *held]}


def read_header(file: Path) -> dict[str, Stored]:
    """Lists the tensors of a weight file in its order, without reading their bytes.

    Raises:
      InputError: if the file is damaged, or is a `.bin` and PyTorch is not installed.
    """
    try:
        size = size_of(file)
        tensors = _bin_header(file) if file.suffix == ".bin" else _safetensors_header(file)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{file} is truncated or cannot be read: {reason}") from None
    for stored in tensors.values():
        if stored.offset + stored.nbytes > size:
            raise InputError(f"{file} is truncated; copy it again")
    return tensors


def _safetensors_header(file: Path) -> dict[str, Stored]:
    start, header = _safetensors_json(file)
    header.pop("__metadata__", None)
    try:
        tensors = {
            key: _safetensors_entry(file, start, key, entry) for key, entry in header.items()
        }
        _check_layout(tensors, start, size_of(file))
    except (ValueError, KeyError) as error:
        raise InputError(f"{file} is not a safetensors file, or is damaged: {error}") from None
    return tensors


def _safetensors_json(file: Path) -> tuple[int, dict[str, Any]]:
    """Reads the header; returns where the tensors begin, and the header."""
    # The safetensors package maps whole files. The format is 8 bytes that hold the length of the
    # header, the header in JSON, and the tensors.
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size_of(file), MAX_HEADER):
                raise ValueError("the header is longer than the file or the limit")
            header = json.loads(stream.read(length), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("the header is not an object")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
            reason = "the header is not JSON"
        raise InputError(f"{file} is not a safetensors file, or is damaged: {reason}") from None
    return 8 + length, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object; raises ValueError if a key occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the header has a key twice")
    return found


def _safetensors_entry(file: Path, start: int, key: str, entry: Any) -> Stored:
    if not key.isprintable():
        raise ValueError(f"{key!r} is not a valid name of a tensor")
    if not isinstance(entry, dict):
        raise ValueError(f"{key} is not an object")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise ValueError(
            f"{key} is of dtype {dtype}, but must be one of {', '.join(SAFETENSORS_DTYPES)}"
        )
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{key} has no shape of whole numbers")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{key} has no offsets of two whole numbers")
    stored = Stored(file, start + offsets[0], SAFETENSORS_DTYPES[dtype], tuple(shape))
    if offsets[1] - offsets[0] != stored.nbytes:
        raise ValueError(f"{key} has a size that differs from its shape")
    return stored


def _is_sizes(value: Any) -> bool:
    # bool is an int to Python.
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_layout(tensors: Mapping[str, Stored], start: int, size: int) -> None:
    """Checks that tensors follow each other without gaps up to the end of the file.

    Raises:
      ValueError: if tensors overlap or leave gaps. `read_header` checks for truncated files.
    """
    end = start
    for key, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if stored.offset != end:
            raise ValueError(f"{key} does not begin where the tensor before it ends")
        end += stored.nbytes
    if end < size:
        raise ValueError("there are bytes after the last tensor")


def _bin_header(file: Path) -> dict[str, Stored]:
    torch = import_torch(file)
    import pickle

    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        # Fake tensors have no bytes, but know where in the file theirs are.
        with FakeTensorMode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # errors for strange files are raised below
            with open_bytes(file) as stream:
                state = torch.load(stream, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        raise InputError(
            f"{file} has objects other than tensors, or is damaged, and was not unpickled; copy it "
            "again, or save its state dict again with torch.save"
        ) from None
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file} is truncated or is not a PyTorch file: {reason}") from None
    if not isinstance(state, dict):
        raise InputError(f"{file} has a {type(state).__name__}, but must have a state dict")
    return {key: _bin_entry(file, key, tensor) for key, tensor in state.items()}


def _bin_entry(file: Path, key: Any, tensor: Any) -> Stored:
    torch = import_torch(file)
    if not isinstance(key, str) or not key.isprintable():
        raise InputError(f"{file}: {key!r} is not a valid name of a tensor")
    dtypes = {
        torch.float32: np.float32,
        torch.float16: np.float16,
        torch.bfloat16: ml_dtypes.bfloat16,
        torch.int64: np.int64,
        torch.int32: np.int32,
    }
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in dtypes:
        raise InputError(f"{file}: {key} is not a tensor of fp32, fp16, bf16 or integers")
    # Sparse and quantized tensors have no storage. The storage of negated ones has other values.
    plain = tensor.layout == torch.strided and tensor.is_contiguous() and not tensor.is_neg()
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None) if plain else None
    if start is None:
        raise InputError(
            f"{file}: {key} is not stored contiguously; save the state dict again with torch.save"
        )
    offset = start + tensor.storage_offset() * tensor.element_size()
    return Stored(file, offset, np.dtype(dtypes[tensor.dtype]), tuple(tensor.shape))


def import_torch(file: Path) -> Any:
    """Imports PyTorch, which only `.bin` files need.

    Raises:
      InputError: if PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{file} needs PyTorch; run pip install 'show1-jax[convert]', or use a .safetensors "
            "file"
        ) from None
    return torch


def read_metadata(file: Path) -> dict[str, str]:
    """Reads the metadata of a `.safetensors` file.

    Raises:
      InputError: if the file is damaged.
    """
    metadata = _safetensors_json(file)[1].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(
            f"{file} is not a safetensors file, or is damaged: the metadata is not an object of "
            "strings"
        )
    return metadata


def by_file(files: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Groups a map of keys to file names by file, and keeps both orders."""
    for name in dict.fromkeys(files.values()):
        yield name, [key for key, other in files.items() if other == name]
