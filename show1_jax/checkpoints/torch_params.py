"""One network's parameters out of PyTorch tensors, and back, through its key table."""

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
    """Fills every parameter of a network from PyTorch tensors, one at a time.

    Args:
      network: the network and its key table.
      tensors: the tensors by PyTorch key.
      where: what to call the source in messages.
      dtype: cast to this dtype; None keeps the stored one.

    Returns:
      The nested parameter tree, as `jax.Array`s.

    Raises:
      InputError: as `lazy_params`, and as reading what it gives.
    """
    lazy = lazy_params(network, tensors, where, dtype)
    return unflatten_dict({path: jnp.asarray(each.read()) for path, each in lazy.items()}, sep="/")


def lazy_params(
    network: Network,
    tensors: Mapping[str, Stored],
    where: str,
    dtype: np.dtype | None = None,
) -> dict[str, LazyArray]:
    """Every parameter of a network by slashed path, read from PyTorch tensors when asked for.

    Reading one raises an InputError if tied tensors differ, or if a value overflows `dtype`.

    Args:
      network: the network and its key table.
      tensors: the tensors by PyTorch key.
      where: what to call the source in messages.
      dtype: cast to this dtype; None keeps the stored one.

    Raises:
      InputError: if a parameter is missing, a tensor unexpected or a shape
        wrong (all of them are listed), or if a buffer holds something else.
    """
    sources: dict[str, list[tuple[str, Layout]]] = {}
    for key, (path, layout) in match(network, tensors, where).items():
        sources.setdefault(path, []).append((key, layout))
    for key in tensors.keys() & network.table.buffers.keys():
        array = tensors[key].read()
        if not array.ndim or not np.array_equal(array, network.table.buffers[key](array.shape)):
            raise InputError(f"{where}: {key} does not hold what it is known to hold")

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
    """The PyTorch keys, of those given, that hold each of our parameters, with their layouts."""
    found: dict[str, list[tuple[str, Layout]]] = {}
    for key in keys:
        if key not in table.buffers:
            path, layout = _find(table, key)
            found.setdefault(path, []).append((key, layout))
    return found


def torch_keys(network: Network) -> dict[str, tuple[int, ...]]:
    """The keys under which a network trained here is written to PyTorch, with our shapes."""
    keys = {}
    for path, shape in network.shapes.items():
        found = network.table.to_torch(path)
        assert found is not None, f"{path} is in no row of the key table"
        keys[found[0]] = shape
    return keys


def torch_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a PyTorch tensor from that of our parameter."""
    # An array of any shape that takes no memory, to move axes of.
    return layout.to_torch(np.broadcast_to(np.float32(0), shape)).shape


def cast(array: np.ndarray, dtype: np.dtype | None, where: str) -> np.ndarray:
    """`array` in another dtype, or as it is for None.

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
            raise InputError(f"{where} has values too large for {dtype.name}; use bf16 or fp32")
    return result


def contiguous(array: np.ndarray) -> np.ndarray:
    """`array` itself if its last axis is its fastest, or else a copy of which it is.

    NumPy moves axes element by element through all of memory; in blocks that
    the caches hold it takes a fifth of the time.
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
    """Whether two arrays are equal in shape, dtype and every bit."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    first, second = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (one, other))
    return np.array_equal(first, second)


def digest(array: np.ndarray) -> str:
    """Tells apart arrays that differ in shape, dtype or any bit."""
    found = hashlib.sha256(f"{array.dtype.name} {array.shape}".encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def match(
    network: Network, tensors: Mapping[str, Stored], where: str
) -> dict[str, tuple[str, Layout]]:
    """Our path and layout for each key that is not a buffer's.

    Raises:
      InputError: one, that lists the missing, the unexpected and the misshapen keys.
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
        raise InputError(f"{where} does not fit its config.json: {listed}")
    return targets


def _abridge(names: list[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _find(table: KeyTable, key: str) -> tuple[str, Layout]:
    found = table.to_ours(key)
    assert found is not None, f"{key} is in no row of the key table"
    return found
