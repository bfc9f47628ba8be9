"""PyTorch weight files, read one tensor at a time.

Files are never mapped into memory or loaded whole: their headers say where
each tensor lies, and its bytes are read when asked for.
"""

import dataclasses
import json
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from show1_jax.checkpoints.networks import read_json
from show1_jax.errors import InputError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "weights")
# The full precision first, where a folder has several.
ENDINGS = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")

# Names that a checkpoint may give its files: of these endings, and in its own folder.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,200}\.(bin|safetensors)", re.ASCII)
_INDEX_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,200}\.index(\.[\w-]+)?\.json", re.ASCII)

# What unpickling raises on damaged bytes; its documentation leaves the list open.
DAMAGE: tuple[type[Exception], ...] = (RuntimeError, EOFError, OSError, ValueError, TypeError)
DAMAGE += (LookupError, AttributeError, AssertionError, struct.error)

SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
PIECE = 2**24  # bytes that are compared at once
MAX_DIMENSIONS = 8  # of a tensor; NumPy has 64
MAX_HEADER = 100 * 10**6  # bytes, as the format's own library has it
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


class Stored(NamedTuple):
    """Where one contiguous tensor lies."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Reads the tensor's bytes.

        Raises:
          InputError: if the file ends before them.
        """
        count = math.prod(self.shape)
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                flat = np.fromfile(file, self.dtype, count)
        except OSError as error:
            raise InputError(f"{self.file} cannot be read: {error.strerror}") from None
        if flat.size != count:
            raise InputError(f"{self.file} is truncated: copy it again")
        return flat.reshape(self.shape)


def same_tensors(
    one: Mapping[str, Stored], other: Mapping[str, Stored], note: Callable[[int], None]
) -> bool:
    """Whether two networks' tensors are equal in key, dtype, shape and every bit.

    Those in the same file at the same place, as hard links are, are not read.

    Args:
      one: the tensors of a network.
      other: and of another.
      note: receives the number of bytes that were compared, now and then.

    Raises:
      InputError: if they cannot be read.
    """
    if one.keys() != other.keys() or any(
        (own.dtype, own.shape) != (other[key].dtype, other[key].shape) for key, own in one.items()
    ):
        return False
    return all(_same_bytes(own, other[key], note) for key, own in one.items())


def _same_bytes(one: Stored, other: Stored, note: Callable[[int], None]) -> bool:
    try:
        if one.offset == other.offset and one.file.samefile(other.file):
            note(one.nbytes)
            return True
        with one.file.open("rb") as first, other.file.open("rb") as second:
            first.seek(one.offset)
            second.seek(other.offset)
            for start in range(0, one.nbytes, PIECE):
                size = min(PIECE, one.nbytes - start)
                if first.read(size) != second.read(size):
                    return False
                note(size)
    except OSError as error:
        raise InputError(f"{error.filename or one.file} cannot be read: {error.strerror}") from None
    return True


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The weights of one network folder: its files, and each tensor in them by key."""

    index: Path | None
    tensors: dict[str, Stored]


def find_weights(folder: Path) -> WeightFiles:
    """Finds a network's weights: `.safetensors` or `.bin`, whole or sharded, or `.fp16.`.

    Raises:
      InputError: if there are none, or a file is damaged.
    """
    incomplete = []
    for ending in ENDINGS:
        for stem in STEMS:
            file = folder / (stem + ending)
            if file.is_file():
                return WeightFiles(None, read_header(file))
            # model.fp16.safetensors is indexed by model.safetensors.index.fp16.json.
            kind = ending.rsplit(".", 1)[1]
            variant = ".fp16" if "fp16" in ending else ""
            index = folder / f"{stem}.{kind}.index{variant}.json"
            if not index.is_file():
                continue
            # Downloads of some files only leave the indices of all.
            missing = [name for name in _shards(index) if not (folder / name).is_file()]
            if not missing:
                return WeightFiles(index, _sharded(index))
            incomplete.append(f"{folder / missing[0]} is missing, though {index.name} names it")
    raise InputError(
        incomplete[0]
        if incomplete
        else f"{folder} holds no weights: looked for {', '.join(STEMS)} "
        f"with {', '.join(ENDINGS)} or an index of shards"
    )


def is_file_name(name: Any, index: bool = False) -> bool:
    """Whether a checkpoint may call a weight file, or an index of shards, so.

    Anything that could lie outside of its own folder, or is no string, may not.
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
                f"{index} names the shard {name!r}: give plain names that end in .bin or "
                ".safetensors, of files beside it"
            )
    return list(dict.fromkeys(weight_map.values()))


def _sharded(index: Path) -> dict[str, Stored]:
    """All tensors of the shards, in the index's order; whether they fit is judged later."""
    held: dict[str, Stored] = {}
    for name in _shards(index):
        held |= read_header(index.parent / name)
    listed = [key for key in read_json(index)["weight_map"] if key in held]
    return {key: held[key] for key in [*listed, *held]}


def read_header(file: Path) -> dict[str, Stored]:
    """Lists the tensors of one weight file, in its order, without reading their bytes.

    Raises:
      InputError: if the file is damaged, or is a `.bin` and PyTorch is not installed.
    """
    try:
        size = file.stat().st_size
        tensors = _bin_header(file) if file.suffix == ".bin" else _safetensors_header(file)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{file} is truncated or cannot be read: {reason}") from None
    for stored in tensors.values():
        if stored.offset + stored.nbytes > size:
            raise InputError(f"{file} is truncated: copy it again")
    return tensors


def _safetensors_header(file: Path) -> dict[str, Stored]:
    start, header = _safetensors_json(file)
    header.pop("__metadata__", None)
    try:
        tensors = {
            key: _safetensors_entry(file, start, key, entry) for key, entry in header.items()
        }
        _check_layout(tensors, start, file.stat().st_size)
    except (ValueError, KeyError) as error:
        raise InputError(f"{file} is no safetensors file, or a damaged one: {error}") from None
    return tensors


def _safetensors_json(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and the header."""
    # The safetensors package maps whole files; the format is eight bytes of
    # length, that much JSON, then the tensors.
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(file.stat().st_size, MAX_HEADER):
                raise ValueError("the header is longer than the file, or than any")
            header = json.loads(stream.read(length), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("the header is no object")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
            reason = "the header is not JSON"
        raise InputError(f"{file} is no safetensors file, or a damaged one: {reason}") from None
    return 8 + length, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no key may come twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the header has a key twice")
    return found


def _safetensors_entry(file: Path, start: int, key: str, entry: Any) -> Stored:
    if not key.isprintable():
        raise ValueError(f"{key!r} is no name of a tensor")
    if not isinstance(entry, dict):
        raise ValueError(f"{key} is no object")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise ValueError(f"{key} is of {dtype}, not of {', '.join(SAFETENSORS_DTYPES)}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{key} has no shape of whole numbers")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{key} has no offsets of two whole numbers")
    stored = Stored(file, start + offsets[0], SAFETENSORS_DTYPES[dtype], tuple(shape))
    if offsets[1] - offsets[0] != stored.nbytes:
        raise ValueError(f"{key} has other bytes than its shape takes")
    return stored


def _is_sizes(value: Any) -> bool:
    # bool is an int to Python.
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_layout(tensors: Mapping[str, Stored], start: int, size: int) -> None:
    """The format has tensors lie one behind the other, without holes, to the file's end.

    Raises:
      ValueError: if they overlap or leave holes. A file that ends early is told elsewhere.
    """
    end = start
    for key, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if stored.offset != end:
            raise ValueError(f"{key} does not begin where the tensor before it ends")
        end += stored.nbytes
    if end < size:
        raise ValueError("there are bytes behind the last tensor")


def _bin_header(file: Path) -> dict[str, Stored]:
    torch = import_torch(file)
    import pickle

    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        # Fake tensors carry no bytes but know where in the file theirs are.
        with FakeTensorMode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch makes of strange files, we say below
            state = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        raise InputError(
            f"{file} holds more than tensors, or is damaged; it was not unpickled: "
            "copy it again, or re-save its state dict with torch.save"
        ) from None
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file} is truncated or is no PyTorch file: {reason}") from None
    if not isinstance(state, dict):
        raise InputError(f"{file} holds no state dict, but a {type(state).__name__}")
    return {key: _bin_entry(file, key, tensor) for key, tensor in state.items()}


def _bin_entry(file: Path, key: Any, tensor: Any) -> Stored:
    torch = import_torch(file)
    if not isinstance(key, str) or not key.isprintable():
        raise InputError(f"{file}: {key!r} is no name of a tensor")
    dtypes = {
        torch.float32: np.float32,
        torch.float16: np.float16,
        torch.bfloat16: ml_dtypes.bfloat16,
        torch.int64: np.int64,
        torch.int32: np.int32,
    }
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in dtypes:
        raise InputError(f"{file}: {key} is not a tensor of fp32, fp16, bf16 or integers")
    # Sparse and quantized tensors have no storage; negated ones hold other values than they say.
    plain = tensor.layout == torch.strided and tensor.is_contiguous() and not tensor.is_neg()
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None) if plain else None
    if start is None:
        raise InputError(
            f"{file}: {key} is not stored plainly; re-save the state dict with torch.save"
        )
    offset = start + tensor.storage_offset() * tensor.element_size()
    return Stored(file, offset, np.dtype(dtypes[tensor.dtype]), tuple(tensor.shape))


def import_torch(file: Path) -> Any:
    """PyTorch, which `.bin` files alone need.

    Raises:
      InputError: if it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{file} needs PyTorch: pip install 'show1-jax[convert]', or use a .safetensors file"
        ) from None
    return torch


def read_metadata(file: Path) -> dict[str, str]:
    """What a `.safetensors` file says of itself.

    Raises:
      InputError: if the file is damaged.
    """
    metadata = _safetensors_json(file)[1].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(
            f"{file} is no safetensors file, or a damaged one: the metadata is no object of texts"
        )
    return metadata


def by_file(files: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Groups a key-to-file-name map into files, keeping both orders."""
    for name in dict.fromkeys(files.values()):
        yield name, [key for key, other in files.items() if other == name]
