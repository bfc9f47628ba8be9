"""The mesh of devices that a program runs on.

Its axes, and what each of them splits:

- `data`: clips of the batch. Each device has a copy of the parameters.
- `fsdp`: clips of the batch too. Each device has a share of the parameters, which are
  gathered layer by layer (fully sharded data parallelism; Zhao et al. 2023).
- `frames`: frames of each clip; see `parallel/frames.py`.
- `tensor`: heads and channels of a layer (Shoeybi et al. 2019).

Devices may be in several slices: TPU slices, or other groups that a slower network joins. Only
`data` crosses it, so that only gradients do, once a step.

The mesh is ambient: programs set it with `jax.set_mesh`, and functions that need it read it.
They do so through `abstract_mesh`, `concrete_mesh` and `current_platform` here, and say so in
their docstrings.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from show1_jax.configuration import build
from show1_jax.errors import InputError

AXES = ("data", "fsdp", "frames", "tensor")
BATCH = ("data", "fsdp")
"""The axes that split the clips of a batch."""

DTYPES = ("float32", "bfloat16", "auto")
SMALL_MEMORY = 6 * 2**30  # bytes; the largest stage takes 4 GiB of a GPU


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The section `mesh` of a config.

    Attributes:
      slices: number of groups of devices that a slower network joins; `data` is split over them.
        -1 for as many as the devices tell of.
      data: number of devices along this axis; -1 for a choice.
      fsdp: the same.
      frames: the same.
      tensor: the same.
    """

    slices: int = -1
    data: int = 1
    fsdp: int = 1
    frames: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        """Raises InputError for sizes that are neither -1 nor at least 1."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != -1 and value < 1:
                raise InputError(f"mesh.{field.name} is {value}, but must be -1 or at least 1")

    @property
    def sides(self) -> dict[str, int]:
        """The size of each axis."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def free(self) -> list[str]:
        """The axes of size -1."""
        return [axis for axis, size in self.sides.items() if size == -1]

    def rest(self, count: int) -> int:
        """Returns how many of `count` devices are left for the axes of size -1, together.

        Raises:
          InputError: if the other sizes do not divide `count`.
        """
        known = math.prod(size for size in self.sides.values() if size != -1)
        if count % known or (not self.free and count != known):
            raise InputError(
                f"mesh {self.sides} needs {'a multiple of ' * bool(self.free)}{known} devices, "
                f"but there are {count}; choose sizes whose product is {count}"
            )
        return count // known


def mesh_settings(sizes: Mapping[str, int]) -> MeshSettings:
    """Reads the section `mesh` of a config; raises InputError if a value is wrong."""
    return build(MeshSettings, sizes, "mesh")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices along the axes.

    Args:
      sizes: values of `MeshSettings`. Of axes with size -1, the first gets the devices that are
        left, and others have size 1; see `parallel.layout` for trainings.
      devices: None for all devices.

    Returns:
      A mesh with all `AXES` in that order, so that `tensor`, which communicates most, is
      innermost. Slices follow each other along `data`.

    Raises:
      InputError: if a size is wrong, the product of the sizes is not the number of devices, or
        `data` cannot be split over the slices.
    """
    devices = jax.devices() if devices is None else devices
    settings = mesh_settings(sizes)
    sides, rest = settings.sides, settings.rest(len(devices))
    for axis in settings.free:
        sides[axis], rest = rest, 1
    groups = slices(devices, settings.slices)
    if sides["data"] % len(groups):
        raise InputError(
            f"mesh.data is {sides['data']}, but {len(groups)} slices share it: make it a multiple "
            f"of {len(groups)}, or set mesh.slices=1 to split parameters over the network between "
            "slices"
        )
    inner = (sides["data"] // len(groups), *list(sides.values())[1:])
    blocks = [_block(inner, group) for group in groups]
    return Mesh(np.concatenate(blocks), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slices(devices: Sequence[jax.Device], count: int = -1) -> list[list[jax.Device]]:
    """Groups devices by the slice that they are in.

    Args:
      devices: any.
      count: of slices; -1 for as many as the devices tell of.

    Returns:
      Groups of equal size.

    Raises:
      InputError: if the groups are not equal.
    """
    ordered = sorted(devices, key=_slice_index)  # stable: neighbours stay neighbours
    if count == -1:
        groups = [list(own) for _, own in itertools.groupby(ordered, _slice_index)]
        if len({len(own) for own in groups}) > 1:
            sizes = ", ".join(str(len(own)) for own in groups)
            raise InputError(
                f"the slices have {sizes} devices, but must be equal: use equal ones, or set "
                "mesh.slices=1"
            )
        return groups
    if len(devices) % count:
        raise InputError(
            f"mesh.slices is {count}, but there are {len(devices)} devices; make it a divisor"
        )
    size = len(devices) // count
    return [ordered[i : i + size] for i in range(0, len(devices), size)]


def slice_count(mesh: Mesh) -> int:
    """Returns of how many slices the devices of a mesh are, as they tell."""
    return len({_slice_index(device) for device in mesh.devices.flat})


def _slice_index(device: jax.Device) -> int:
    """The slice that a device is in; CPUs do not tell."""
    return getattr(device, "slice_index", None) or 0


def _block(sides: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Arranges devices such that neighbours along an axis are neighbours in the network."""
    if len({_slice_index(device) for device in devices}) > 1:
        return np.array(devices).reshape(sides)
    return mesh_utils.create_device_mesh(sides, devices, allow_split_physical_axes=True)


def description(shape: Mapping[str, int]) -> str:
    """Says how many devices a mesh has along each axis, such as "data 8, fsdp 32"."""
    return ", ".join(f"{axis} {size}" for axis, size in shape.items() if size > 1)


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
