"""One network's parameters out of PyTorch tensors, and back, through its key table."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from show1_jax.checkpoints.keys import KeyTable, Layout
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
      InputError: if a parameter is missing, a tensor unexpected or a shape
        wrong (all of them are listed), if tied tensors differ, or if a value
        overflows `dtype`.
    """
    params: dict[str, jax.Array] = {}
    for key, path, array in _read(network, tensors, where, dtype):
        if path not in params:
            params[path] = jnp.asarray(array)
        elif params[path].tobytes() != array.tobytes():
            raise InputError(f"{where}: {key} differs from the tensor it is tied to")
    return unflatten_dict(params, sep="/")


def verify_params(
    network: Network,
    tensors: Mapping[str, Stored],
    params: Mapping[str, Any],
    where: str,
    dtype: np.dtype | None = None,
) -> None:
    """Compares a parameter tree with the PyTorch tensors it came from or became, bit for bit.

    Raises:
      InputError: if they differ.
    """
    flat = flatten_dict(params, sep="/")
    for key, path, array in _read(network, tensors, where, dtype):
        ours = np.asarray(flat[path])
        if ours.dtype != array.dtype or ours.tobytes() != array.tobytes():
            raise InputError(f"{where}: {key} did not survive the conversion; try it again")


def params_to_torch(
    table: KeyTable,
    params: dict[str, np.ndarray],
    keys: Mapping[str, tuple[int, ...]],
    later: Iterable[str] = (),
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the PyTorch tensors for `keys`, emptying `params` as it goes.

    Args:
      table: the network's key table.
      params: our arrays by slashed path; each is removed after its last use.
      keys: the PyTorch keys wanted, in order; shapes are needed for buffers alone.
      later: keys that will be wanted of `params` in later calls.

    Yields:
      Key and array, laid out as PyTorch has it. Tied keys yield one object.
    """
    uses = Counter(_find(table, key)[0] for key in keys if key not in table.buffers)
    kept = {_find(table, key)[0] for key in later if key not in table.buffers}
    tied: dict[str, np.ndarray] = {}
    for key, shape in keys.items():
        if key in table.buffers:
            yield key, np.array(table.buffers[key](shape))
            continue
        path, layout = _find(table, key)
        uses[path] -= 1
        array = tied.pop(path, None)
        if array is None:
            ours = params[path] if path in kept else params.pop(path)
            array = np.require(layout.to_torch(ours), requirements=["C", "W"])
        if uses[path]:
            tied[path] = array
        yield key, array


def torch_keys(network: Network) -> dict[str, tuple[int, ...]]:
    """The keys under which a network trained here is written to PyTorch, with our shapes."""
    keys = {}
    for path, shape in network.shapes.items():
        found = network.table.to_torch(path)
        assert found is not None, f"{path} is in no row of the key table"
        keys[found[0]] = shape
    return keys


def cast(array: np.ndarray, dtype: np.dtype | None, where: str) -> np.ndarray:
    """`array` in another dtype, or as it is for None.

    Raises:
      InputError: if a finite value becomes infinite.
    """
    if dtype is None or array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    infinite = np.isinf(result.astype(np.float32))
    if infinite.any() and np.isfinite(array[infinite].astype(np.float32)).any():
        raise InputError(f"{where} has values too large for {dtype.name}; use bf16 or fp32")
    return result


def _read(
    network: Network, tensors: Mapping[str, Stored], where: str, dtype: np.dtype | None
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields key, our path and our array for every tensor, reading it when its turn comes."""
    targets = match(network, tensors, where)
    for key, stored in tensors.items():
        array = stored.read()
        if key in network.table.buffers:
            if not np.array_equal(array, network.table.buffers[key](array.shape)):
                raise InputError(f"{where}: {key} does not hold what it is known to hold")
            continue
        path, layout = targets[key]
        yield key, path, cast(np.ascontiguousarray(layout.to_jax(array)), dtype, f"{where}: {key}")


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
        expected = layout.to_torch(_stand_in(shapes[path])).shape
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


def _stand_in(shape: tuple[int, ...]) -> np.ndarray:
    """An array of any shape that takes no memory, to move axes of."""
    return np.broadcast_to(np.float32(0), shape)


def _abridge(names: list[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _find(table: KeyTable, key: str) -> tuple[str, Layout]:
    found = table.to_ours(key)
    assert found is not None, f"{key} is in no row of the key table"
    return found
