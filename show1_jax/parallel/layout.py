"""Chooses how many devices lie along each axis of the mesh for a training.

A config may leave `data`, `fsdp` and `frames` open (-1). The choice depends on the number of
devices, the clips of a batch and the shapes of the parameters.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from show1_jax.errors import InputError
from show1_jax.parallel.mesh import AXES, make_mesh, mesh_settings, slices
from show1_jax.parallel.sharding import parameter_spec

STATE_BYTES = 16  # of a parameter: itself, two moments and an average, all in fp32
MAX_STATE = 2**30  # bytes on a device; a v5e has 16 GiB

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of parameters by slashed path."""


def training_mesh(
    sizes: Mapping[str, int],
    clips: int,
    params: Callable[[], Any],
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arranges devices for a training; see `training_sizes`.

    Args:
      sizes: values of `parallel.mesh.MeshSettings`.
      clips: of a batch, or of each part of one with `accumulate`.
      params: makes the tree of the trained network's parameters, arrays or
        `jax.ShapeDtypeStruct`s. It is called only if the choice depends on it.
      devices: None for all devices.

    Raises:
      InputError: see `make_mesh`.
    """
    devices = jax.devices() if devices is None else devices
    groups = slices(devices, mesh_settings(sizes).slices)

    def shapes() -> Shapes:
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(params())
        }

    chosen = training_sizes(sizes, len(devices), len(groups), clips, shapes)
    return make_mesh(dict(sizes) | chosen, devices)


def training_sizes(
    sizes: Mapping[str, int], devices: int, groups: int, clips: int, shapes: Callable[[], Shapes]
) -> dict[str, int]:
    """Chooses the sizes of axes for a training.

    - `frames` is 1, unless there are more devices than clips: then devices share clips.
    - `fsdp` is the smallest number with which a device's share of the parameters and the optimizer
      takes at most `MAX_STATE`, or as little as it can. Small groups exchange less, divide more
      parameters evenly, and lie closer together. XLA also turns gathers over all chips of a large
      slice into sums, which send twice as much.
    - `data` is the rest.

    Args:
      sizes: values of `parallel.mesh.MeshSettings`. If at most one axis has size -1, that gets the
        devices that are left.
      devices: number of devices.
      groups: number of slices.
      clips: of a batch.
      shapes: gives the shapes of the parameters.

    Returns:
      The size of each axis.

    Raises:
      InputError: if the sizes do not divide the number of devices.
    """
    settings = mesh_settings(sizes)
    sides, free, rest = settings.sides, settings.free, settings.rest(devices)
    if len(free) > 1 and "tensor" in free:
        raise InputError("mesh.tensor is -1 beside others: give its size")
    if len(free) > 1 and "frames" in free:
        known = math.prod(sides[axis] for axis in ("data", "fsdp") if sides[axis] != -1)
        fits = [n for n in _divisors(rest) if not clips % (known * rest // n)]
        sides["frames"] = min(fits, default=1)
        rest //= sides["frames"]
        free = [axis for axis in free if axis != "frames"]
    if len(free) > 1:
        within = [n for n in _divisors(rest) if not rest // n % groups] or [1]
        sides["fsdp"] = 1 if rest == 1 else _fsdp(within, sides["tensor"], shapes())
        rest //= sides["fsdp"]
        free = ["data"]
    for axis in free:
        sides[axis] = rest
    return sides


def _fsdp(candidates: Sequence[int], tensor: int, shapes: Shapes) -> int:
    """Chooses among sizes of `fsdp`, in rising order."""

    def state(fsdp: int) -> float:
        """Bytes of a device's share of the state."""
        mesh = AbstractMesh((1, fsdp, 1, tensor), AXES)
        total = 0.0
        for path, shape in shapes.items():
            split = [axis for axis in parameter_spec(mesh, path, shape) if axis is not None]
            total += STATE_BYTES * math.prod(shape) / math.prod(mesh.shape[axis] for axis in split)
        return total

    bytes_of = {fsdp: state(fsdp) for fsdp in candidates}
    fitting = [fsdp for fsdp in candidates if bytes_of[fsdp] <= MAX_STATE]
    return fitting[0] if fitting else min(candidates, key=bytes_of.__getitem__)


def _divisors(number: int) -> list[int]:
    """Divisors in rising order."""
    return [n for n in range(1, number + 1) if not number % n]
