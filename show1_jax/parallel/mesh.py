"""The mesh of devices that a program runs on, and what its axes mean.

- `data`: clips of the batch, each with a whole copy of the parameters
- `fsdp`: clips of the batch too, with a share of the parameters each, which are
  gathered layer by layer (fully sharded data parallelism; Zhao et al. 2023)
- `frames`: frames of each clip; see `parallel/frames.py`
- `tensor`: heads and channels of a layer (Shoeybi et al. 2019)
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
"""The axes that clips are spread over."""

# Not float16: T5 overflows in it.
DTYPES = ("float32", "bfloat16", "auto")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays devices out along the axes.

    Args:
      sizes: how many devices along each axis: 1 where there is none, and -1 for
        at most one of them, which takes the rest.
      devices: all there are, by default.

    Returns:
      A mesh with all `AXES`, in that order: `tensor`, which communicates most, is innermost.

    Raises:
      InputError: if an axis is unknown, or the sizes do not multiply out.
    """
    devices = jax.devices() if devices is None else devices
    if unknown := sorted(set(sizes) - set(AXES)):
        raise InputError(f"mesh has no axis {unknown[0]!r}: take {', '.join(AXES)}")
    shape = {axis: sizes.get(axis, 1) for axis in AXES}
    given = [size for size in shape.values() if size != -1]
    if len(given) < len(AXES) - 1 or min(given) < 1:
        raise InputError(f"mesh {dict(sizes)}: sizes are 1 or more, and one of them may be -1")
    known, count = math.prod(given), len(devices)
    rest = count // known if len(given) < len(AXES) else 1
    if known * rest != count:
        raise InputError(
            f"mesh {dict(sizes)} takes {'a multiple of ' * (len(given) < len(AXES))}{known} "
            f"devices, but there are {count}: change sizes so that they multiply to {count}"
        )
    sides = tuple(rest if size == -1 else size for size in shape.values())
    return jax.make_mesh(sides, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def is_shared(mesh: Mesh) -> bool:
    """Whether devices of several processes are in a mesh."""
    return not mesh.empty and mesh.is_multi_process


def rounded_up(batch: int, parts: int) -> int:
    """The smallest batch of at least this size that splits into as many parts."""
    return -(-batch // parts) * parts


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def target() -> tuple[str, float]:
    """What is compiled for: "cpu", "tpu" or "gpu", and a GPU's compute capability, else 0."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    if platform not in ("gpu", "cuda"):
        return platform, 0.0
    # A GPU's kernels are chosen by the one that is here: nothing compiles for others.
    capability = str(getattr(jax.local_devices()[0], "compute_capability", 0))
    return "gpu", float(capability) if re.fullmatch(r"[\d.]+", capability) else 0.0  # AMD: gfx942


def compute_dtype(name: str, setting: str = "dtype") -> np.dtype:
    """The dtype that networks compute in, on the mesh that is set.

    Args:
      name: one of `DTYPES`. "auto" is float32 on CPUs, which compute bfloat16 in float32 and
        convert it back and forth, and bfloat16 on all else.
      setting: what to call the setting in messages.

    Raises:
      InputError: if it is none of them.
    """
    if name not in DTYPES:
        raise InputError(f"{setting} {name!r} is not one of {', '.join(DTYPES)}")
    if name == "auto":
        name = "float32" if target()[0] == "cpu" else "bfloat16"
    return jnp.dtype(name)
