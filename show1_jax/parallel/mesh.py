"""The mesh of devices that a program runs on.

Its axes, and what each of them splits:

- `data`: clips of the batch. Each device has a copy of the parameters.
- `fsdp`: clips of the batch too. Each device has a share of the parameters, which are
  gathered layer by layer (fully sharded data parallelism; Zhao et al. 2023).
- `frames`: frames of each clip; see `parallel/frames.py`.
- `tensor`: heads and channels of a layer (Shoeybi et al. 2019).

The mesh is ambient: programs set it with `jax.set_mesh`, and functions that need it read it.
They do so through `abstract_mesh`, `concrete_mesh` and `current_platform` here, and say so in
their docstrings.
"""

import math
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from show1_jax.errors import InputError

AXES = ("data", "fsdp", "frames", "tensor")
BATCH = ("data", "fsdp")
"""The axes that split the clips of a batch."""

DTYPES = ("float32", "bfloat16", "auto")
SMALL_MEMORY = 6 * 2**30  # bytes; the largest stage takes 4 GiB of a GPU


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices along the axes.

    Args:
      sizes: number of devices along each axis. Missing axes have size 1. One axis may have
        size -1, and gets the remaining devices.
      devices: None for all devices.

    Returns:
      A mesh with all `AXES` in that order, so that `tensor`, which communicates most, is
      innermost.

    Raises:
      InputError: if an axis is unknown, or the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if unknown := sorted(set(sizes) - set(AXES)):
        raise InputError(f"mesh has no axis {unknown[0]!r}; its axes are {', '.join(AXES)}")
    shape = {axis: sizes.get(axis, 1) for axis in AXES}
    given = [size for size in shape.values() if size != -1]
    if len(given) < len(AXES) - 1 or min(given) < 1:
        raise InputError(f"mesh {dict(sizes)}: each size must be 1 or more; one may be -1")
    known, count = math.prod(given), len(devices)
    rest = count // known if len(given) < len(AXES) else 1
    if known * rest != count:
        raise InputError(
            f"mesh {dict(sizes)} needs {'a multiple of ' * (len(given) < len(AXES))}{known} "
            f"devices, but there are {count}; choose sizes whose product is {count}"
        )
    sides = tuple(rest if size == -1 else size for size in shape.values())
    return jax.make_mesh(sides, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def is_shared(mesh: Mesh) -> bool:
    """Returns whether a mesh has devices of several processes."""
    return not mesh.empty and mesh.is_multi_process


def rounded_up(batch: int, parts: int) -> int:
    """Rounds a batch size up to a multiple of `parts`."""
    return -(-batch // parts) * parts


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Returns into how many parts a mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def abstract_mesh() -> AbstractMesh | None:
    """Returns the mesh set by `jax.set_mesh`, without its devices; None if none is set.

    Works while a function is traced, where `concrete_mesh` fails.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def concrete_mesh() -> Mesh | None:
    """Returns the mesh set by `jax.set_mesh`, with its devices; None if none is set.

    Raises:
      ValueError: while a function is traced.
    """
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def current_platform() -> tuple[str, float]:
    """Returns the platform to compile for, and a GPU's compute capability.

    Reads the mesh set by `jax.set_mesh`; without one, the platform is JAX's default backend.

    Returns:
      "cpu", "tpu" or "gpu"; and the compute capability, 0 if there is none.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    if platform not in ("gpu", "cuda"):
        return platform, 0.0
    # A GPU that is absent says it in its name; see `aot.chips`.
    named = re.search(r"compute capability ([\d.]+)", "" if device is None else device.device_kind)
    if named:
        return "gpu", float(named[1])
    capability = str(getattr(jax.local_devices()[0], "compute_capability", 0))
    return "gpu", float(capability) if re.fullmatch(r"[\d.]+", capability) else 0.0  # AMD: gfx942


def compute_dtype(name: str, setting: str = "dtype") -> np.dtype:
    """Returns the dtype that networks compute in.

    Reads the platform of the mesh set by `jax.set_mesh`.

    Args:
      name: one of `DTYPES`. "auto" is bfloat16, except on CPUs: they convert bfloat16 to float32
        and back for each operation, so it is float32 there.
      setting: name of the setting in error messages.

    Raises:
      InputError: if `name` is not one of `DTYPES`.
    """
    if name not in DTYPES:
        raise InputError(f"{setting} {name!r} is not one of {', '.join(DTYPES)}")
    if name == "auto":
        name = "float32" if current_platform()[0] == "cpu" else "bfloat16"
    return jnp.dtype(name)


def sampling_dtype(name: str) -> np.dtype:
    """Returns the dtype that networks compute in while sampling.

    GPUs have float16, which is eight times as close to float32 as bfloat16 is: of the recorded
    predictions it changes 0.1 to 0.4 %, bfloat16 0.7 to 2.7 % (root mean square). The released
    networks were made for it. It is not for training, whose gradients would underflow.

    Reads the platform of the mesh set by `jax.set_mesh`.

    Args:
      name: one of `DTYPES`, or "float16". "auto" is float16 on GPUs, elsewhere as in
        `compute_dtype`.

    Raises:
      InputError: if `name` is unknown, or float16 without a GPU.
    """
    gpu = current_platform()[0] == "gpu"
    if name not in (known := ("float16", *DTYPES)):
        raise InputError(f"dtype {name!r} is not one of {', '.join(known)}")
    if name == "float16" and not gpu:
        raise InputError("dtype float16 needs a GPU: take auto, bfloat16 or float32")
    if gpu and name in ("auto", "float16"):
        return jnp.dtype(jnp.float16)
    return compute_dtype(name)


def low_memory(memory: str, limit: int | None = None) -> bool:
    """Returns whether sampling is to take as little of each device's memory as it can.

    Args:
      memory: "low", "normal" or "auto", which is low on devices with less than `SMALL_MEMORY`.
      limit: bytes that a device has for arrays; None for what the first device of this process
        says.

    Raises:
      InputError: if `memory` is none of these.
    """
    if memory not in ("low", "normal", "auto"):
        raise InputError(f"memory {memory!r} is not low, normal or auto")
    if memory != "auto":
        return memory == "low"
    if limit is None:
        stats = jax.local_devices()[0].memory_stats() or {}  # CPUs have none
        limit = stats.get("bytes_limit", SMALL_MEMORY)
    return limit < SMALL_MEMORY
