"""PyTorch weight files, read and written one tensor at a time.

Files are never mapped into memory or loaded whole: their headers say where
each tensor lies, and its bytes are read when asked for. So the memory a
conversion takes is that of the network it makes.
"""

import dataclasses
import json
import math
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from show1_jax.checkpoints.networks import read_json
from show1_jax.errors import InputError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "weights")
# The full precision first, where a folder has several.
ENDINGS = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")

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
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


class Stored(NamedTuple):
    """Where one contiguous tensor lies."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

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


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index} has no weight_map")
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
        if stored.offset + math.prod(stored.shape) * stored.dtype.itemsize > size:
            raise InputError(f"{file} is truncated: copy it again")
    return tensors


def _safetensors_header(file: Path) -> dict[str, Stored]:
    start, header = _safetensors_json(file)
    header.pop("__metadata__", None)
    try:
        return {key: _safetensors_entry(file, start, key, entry) for key, entry in header.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{file} is no safetensors file, or a damaged one: {error}") from None


def _safetensors_json(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and the header."""
    # The safetensors package maps whole files; the format is eight bytes of
    # length, that much JSON, then the tensors.
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("the header is no object")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            reason = "the header is not JSON"
        raise InputError(f"{file} is no safetensors file, or a damaged one: {reason}") from None
    return 8 + length, header


def _safetensors_entry(file: Path, start: int, key: str, entry: Mapping[str, Any]) -> Stored:
    begin, end = entry["data_offsets"]
    stored = Stored(file, start + begin, SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"]))
    if begin < 0 or end - begin != math.prod(stored.shape) * stored.dtype.itemsize:
        raise ValueError(f"{key} has other bytes than its shape takes")
    return stored


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


def _bin_entry(file: Path, key: str, tensor: Any) -> Stored:
    torch = import_torch(file)
    dtypes = {
        torch.float32: np.float32,
        torch.float16: np.float16,
        torch.bfloat16: ml_dtypes.bfloat16,
        torch.int64: np.int64,
        torch.int32: np.int32,
    }
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in dtypes:
        raise InputError(f"{file}: {key} is not a tensor of fp32, fp16, bf16 or integers")
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None or not tensor.is_contiguous():
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
    if not isinstance(metadata, dict):
        raise InputError(
            f"{file} is no safetensors file, or a damaged one: the metadata is no object"
        )
    return metadata


def write_file(
    file: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes one `.bin` or `.safetensors` file.

    A `.bin` stores an array given twice once, and no metadata.
    """
    if file.suffix == ".bin":
        torch = import_torch(file)
        made: dict[int, Any] = {}
        state = {}
        for key, array in tensors:
            if id(array) not in made:
                made[id(array)] = (array, _as_torch(torch, array))
            state[key] = made[id(array)][1]
        torch.save(state, file)
    else:
        _write_safetensors(file, dict(tensors), metadata or {})


def _as_torch(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _write_safetensors(
    file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for key, array in tensors.items():
        header[key] = {
            "dtype": SAFETENSORS_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for array in tensors.values():
            np.ascontiguousarray(array).tofile(stream)


def by_file(files: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Groups a key-to-file-name map into files, keeping both orders."""
    for name in dict.fromkeys(files.values()):
        yield name, [key for key, other in files.items() if other == name]
