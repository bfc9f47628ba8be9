"""Converts a network's parameters from PyTorch tensors and back, through its key table."""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import unflatten_dict

from show1_jax.checkpoints.keys import KeyTable, Layout
from show1_jax.checkpoints.lazy import LazyArray
from show1_jax.checkpoints.networks import Network
from show1_jax.checkpoints.torch_files import Stored
from show1_jax.errors import InputError


def params_from_torch(
    network: Network,
    tensors: Mapping[str, Stored],
    where: str,
    dtype: np.dtype | None = None,
) -> dict[str, Any]:
    """Reads all parameters of a network from PyTorch tensors, one at a time.

    Args:
      network: the network and its key table.
      tensors: the tensors by PyTorch key.
      where: name of the source in error messages.
      dtype: cast to this dtype; None keeps the stored one.

    Returns:
      The nested parameter tree, as `jax.Array`s.

    Raises:
      InputError: as in `lazy_params`.
    """
    lazy = lazy_params(network, tensors, where, dtype)
    return unflatten_dict({path: jnp.asarray(each.read()) for path, each in lazy.items()}, sep="/")


def lazy_params(
    network: Network,
    tensors: Mapping[str, Stored],
    where: str,
    dtype: np.dtype | None = None,
) -> dict[str, LazyArray]:
    """Returns all parameters of a network by slashed path, to read from PyTorch tensors later.

    Reading a parameter raises InputError if tied tensors differ, or if a value overflows `dtype`.

    Args:
      network: the network and its key table.
      tensors: the tensors by PyTorch key.
      where: name of the source in error messages.
      dtype: cast to this dtype; None keeps the stored one.

    Raises:
      InputError: if parameters are missing, tensors are unexpected or shapes are wrong (the message
        lists all of them), or if a buffer has unexpected values.
    """
    sources: dict[str, list[tuple[str, Layout]]] = {}
    for key, (path, layout) in match(network, tensors, where).items():
        sources.setdefault(path, []).append((key, layout))
    for key in tensors.keys() & network.table.buffers.keys():
        array = tensors[key].read()
        if not array.ndim or not np.array_equal(array, network.table.buffers[key](array.shape)):
            raise InputError(f"{where}: {key} has unexpected values")

    def read(path: str) -> np.ndarray:
        arrays = (
            contiguous(layout.to_jax(cast(tensors[key].read(), dtype, f"{where}: {key}")))
            for key, layout in sources[path]
        )
        first = next(arrays)
        for (key, _), other in zip(sources[path][1:], arrays, strict=True):
            if not same_bits(first, other):
                raise InputError(f"{where}: {key} differs from the tensor it is tied to")
        return first

    return {
        path: LazyArray(
            network.shapes[path],
            dtype or tensors[keys[0][0]].dtype,
            functools.partial(read, path),
        )
        for path, keys in sources.items()
    }


def keys_by_path(table: KeyTable, keys: Iterable[str]) -> dict[str, list[tuple[str, Layout]]]:
    """Groups PyTorch keys by the parameter that they hold; returns keys and layouts by path."""
    found: dict[str, list[tuple[str, Layout]]] = {}
    for key in keys:
        if key not in table.buffers:
            path, layout = _find(table, key)
            found.setdefault(path, []).append((key, layout))
    return found


def torch_keys(network: Network) -> dict[str, tuple[int, ...]]:
    """Returns the PyTorch keys of a network trained here, with our shapes."""
    keys = {}
    for path, shape in network.shapes.items():
        found = network.table.to_torch(path)
        assert found is not None, f"{path} is in no row of the key table"
        keys[found[0]] = shape
    return keys


def torch_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a PyTorch tensor for that of our parameter."""
    # This array takes no memory, whatever its shape.
    return layout.to_torch(np.broadcast_to(np.float32(0), shape)).shape


def cast(array: np.ndarray, dtype: np.dtype | None, where: str) -> np.ndarray:
    """Casts an array; None returns it as it is.

    Raises:
      InputError: if a finite value becomes infinite.
    """
    if dtype is None or array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if ml_dtypes.finfo(dtype).max < ml_dtypes.finfo(array.dtype).max:
        infinite = np.isinf(result)
        if infinite.any() and np.isfinite(array[infinite]).any():
            raise InputError(
                f"{where} has values that are too large for {dtype.name}; use bf16 or fp32"
            )
    return result


def contiguous(array: np.ndarray) -> np.ndarray:
    """Returns a C-contiguous array: `array` itself if it is one, otherwise a copy.

    NumPy copies transposed arrays element by element. Copying blocks that fit the caches takes a
    fifth of the time.
    """
    if array.flags.c_contiguous or array.ndim < 2:
        return np.ascontiguousarray(array)
    result = np.empty(array.shape, array.dtype)
    rows, columns = array.shape[-2:]
    for i in range(0, rows, 256):
        for j in range(0, columns, 16):
            block = (..., slice(i, i + 256), slice(j, j + 16))
            result[block] = array[block]
    return result


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether two arrays are equal in shape, dtype and every bit."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    first, second = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (one, other))
    return np.array_equal(first, second)


def digest(array: np.ndarray) -> str:
    """Computes a hash of an array's shape, dtype and bits."""
    found = hashlib.sha256(f"{array.dtype.name} {array.shape}".encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def match(
    network: Network, tensors: Mapping[str, Stored], where: str
) -> dict[str, tuple[str, Layout]]:
    """Returns our path and the layout for each key that is not a buffer.

    Raises:
      InputError: if keys are missing, unexpected or misshapen; the message lists all of them.
    """
    shapes = network.shapes
    targets: dict[str, tuple[str, Layout]] = {}
    filled: dict[str, str] = {}
    unexpected, misshapen = [], []
    for key, stored in tensors.items():
        if key in network.table.buffers:
            continue
        found = network.table.to_ours(key)
        if found is None or found[0] not in shapes:
            unexpected.append(key)
            continue
        path, layout = found
        other = filled.setdefault(path, key)
        if other != key and not {key, other} <= network.table.tied:
            unexpected.append(f"{key} beside {other}")
            continue
        targets[key] = found
        expected = torch_shape(layout, shapes[path])
        if stored.shape != expected:
            misshapen.append(f"{key} {stored.shape} instead of {expected}")
        elif stored.dtype.kind == "i":
            misshapen.append(f"{key} of integers")
    missing = [key for key in torch_keys(network) if _find(network.table, key)[0] not in filled]
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(
            f"{kind}: {_abridge(names)}" for kind, names in problems.items() if names
        )
        raise InputError(f"{where} does not match its config.json: {listed}")
    return targets


def _abridge(names: list[str], limit: int = 20) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _find(table: KeyTable, key: str) -> tuple[str, Layout]:
    found = table.to_ours(key)
    assert found is not None, f"{key} is in no row of the key table"
    return found
