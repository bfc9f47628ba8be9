"""Where everything lies on the mesh that is set (`jax.set_mesh`).

Parameters are split over `tensor` as their layer computes: the first of two
products by its outputs, the second by its inputs, so that only their result is
summed (Shoeybi et al. 2019, section 3); the denoisers' gated layers exchange
their halves as well, which one product makes as released. Large ones are split
over `fsdp` as well, along the longest side that is left. The state of the
optimizer ends in the parameters' paths and shapes, and so is split as they are.
Without a mesh everything lies on the default device.
"""

import contextvars
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)
from jax.typing import DTypeLike

from show1_jax.parallel.mesh import BATCH, batch_parts, is_shared, rounded_up

# Which side of a parameter is split over `tensor`, by the end of its slashed path.
TENSOR = (
    (r"\b(to_[qkv]|add_[kv]_proj|ff_in|ff_gate)/(kernel|bias)", -1),
    (r"\b(to_out|ff_out)/kernel", -2),
    (r"\bconv[13]/(kernel|bias)", -1),
    (r"\bconv[24]/kernel", -2),
)
LEAST_SPLIT = 2**16  # elements; to gather less costs more than it saves
WORTH_SAYING = 0.05  # of the parameters

# Whether the clips of a batch are mapped over, and so spread already, where a layer is called.
_CLIPS_SPREAD: contextvars.ContextVar[bool] = contextvars.ContextVar("clips", default=False)


def parameter_spec(mesh: Mesh | AbstractMesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """How an array with this slashed path is split; only sides that divide evenly are."""
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    axes: list[str | None] = [None] * len(shape)
    for pattern, side in TENSOR if tensor > 1 else ():
        if re.search(pattern + "$", path) and len(shape) >= -side:
            if not shape[side] % tensor:
                axes[side] = "tensor"
            break
    if fsdp > 1 and math.prod(shape) >= LEAST_SPLIT:
        sides = range(len(shape))
        free = [side for side in sides if axes[side] is None and not shape[side] % fsdp]
        if free:
            axes[max(free, key=lambda side: (shape[side], side))] = "fsdp"
    return PartitionSpec(*axes)


def shardings(tree: Any) -> Any:
    """How parameters, or a state that contains some, are split.

    Args:
      tree: of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      A tree of shardings.
    """
    mesh = jax.sharding.get_mesh()

    def sharding(path: Any, leaf: Any) -> Sharding:
        if mesh.empty:
            return SingleDeviceSharding(jax.devices()[0])
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, parameter_spec(mesh, name, leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def fsdp_hint(params: Any) -> str:
    """Which size of `fsdp` splits what the mesh's leaves whole; "" if little is or none does.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s.
    """
    mesh = jax.sharding.get_mesh()
    fsdp = 1 if mesh.empty else mesh.shape["fsdp"]
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def whole(size: int) -> float:
        """The share of parameters that are large enough but have no side to split so often."""
        sides = tuple((mesh.shape | {"fsdp": size}).values())
        other = AbstractMesh(sides, mesh.axis_names)
        left = (
            math.prod(shape)
            for path, shape in shapes.items()
            if "fsdp" not in parameter_spec(other, path, shape)
        )
        return sum(n for n in left if n >= LEAST_SPLIT) / sum(map(math.prod, shapes.values()))

    if fsdp == 1 or (share := whole(fsdp)) < WORTH_SAYING:
        return ""
    better = [n for n in range(2, fsdp) if not fsdp % n and whole(n) < WORTH_SAYING]
    if not better:
        return ""
    return (
        f"fsdp leaves {share:.0%} of the parameters whole on every device, as none of their sides "
        f"divides by {fsdp}: mesh.fsdp={better[-1]} splits them, with the other devices along data"
    )


def gathered(params: Any, dtype: DTypeLike) -> Any:
    """A layer's parameters for its products: whole along `fsdp`, those that were split in `dtype`.

    Left to itself, the compiler gathers activations instead where it takes them
    for smaller, and those of all clips are not. The gradients are summed to where
    their parameters lie.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return params

    def gather(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        split = parameter_spec(mesh, name, leaf.shape)
        if "fsdp" not in split:
            return leaf
        whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in split))
        return _gather(leaf.astype(dtype), split, whole)

    return jax.tree_util.tree_map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(leaf: jax.Array, split: PartitionSpec, whole: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, whole)


def _gather_forward(leaf: jax.Array, split: Any, whole: Any) -> tuple[jax.Array, None]:
    return _gather(leaf, split, whole), None


def _gather_backward(split: Any, whole: Any, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gather.defvjp(_gather_forward, _gather_backward)


def placed(tree: Any) -> Any:
    """A tree of `jax.ShapeDtypeStruct`s that say where each array is to lie."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree),
    )


def put_batch(tree: Any, axis: int = 0) -> Any:
    """Puts arrays on the devices, with the clips along `axis` spread over them if they divide.

    Where processes share the mesh, each of them has to have the whole arrays.
    """
    mesh = jax.sharding.get_mesh()

    def put(array: Any) -> jax.Array:
        even = not mesh.empty and not np.shape(array)[axis] % batch_parts(mesh)
        return put_array(array, *(None,) * axis, BATCH) if even else put_array(array)

    return jax.tree.map(put, tree)


def put_padded(tree: Any) -> Any:
    """As `put_batch` does, but of a batch that does not divide, the last clip is repeated."""
    mesh = jax.sharding.get_mesh()
    parts = 1 if mesh.empty else batch_parts(mesh)

    def pad(array: np.ndarray) -> np.ndarray:
        more = rounded_up(len(array), parts) - len(array)
        return np.pad(array, ((0, more), *((0, 0),) * (array.ndim - 1)), "edge")

    return put_batch(jax.tree.map(pad, tree))


def put_array(array: Any, *axes: Any) -> jax.Array:
    """Puts an array, which every process has, on all devices, its sides split over mesh axes."""
    mesh = jax.sharding.get_mesh()
    array = np.asarray(array) if not isinstance(array, jax.Array) else array
    if mesh.empty:
        return jax.device_put(array)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    if is_shared(mesh):
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
    return jax.device_put(array, sharding)


def own_rows(batch_size: int) -> list[int]:
    """The places in a batch that this process's devices hold."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return list(range(batch_size))
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for own in slices if own for row in range(batch_size)[own[0]]})


def put_rows(tree: Any, batch_size: int) -> Any:
    """As `put_batch` does, of arrays of which each process has its `own_rows`."""
    mesh = jax.sharding.get_mesh()
    if not is_shared(mesh):
        return put_batch(tree)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(
            sharding, array, (batch_size, *array.shape[1:])
        ),
        tree,
    )


def spread(x: jax.Array) -> jax.Array:
    """Keeps an activation's clips, its first axis, spread over the devices.

    So parameters that are split over `fsdp` are gathered for it, not it for them.
    Clips that do not divide evenly are left as they are; so is everything
    without a mesh. Under `over_clips` it is the mapped axis that is kept spread.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    clips = PartitionSpec.UNCONSTRAINED if len(x) % batch_parts(mesh) else BATCH
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(clips, *rest))


def clips_of_device(clips: int) -> int:
    """How many of a batch's clips each device has."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else batch_parts(mesh)
    return clips if clips % parts else clips // parts


def over_clips(function: Callable[..., Any], clips: int) -> Callable[..., Any]:
    """`jax.vmap` over the clips of a batch, which stay spread over the devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or clips % batch_parts(mesh):
        return jax.vmap(function)

    def one(*arrays: Any) -> Any:
        token = _CLIPS_SPREAD.set(True)
        try:
            return function(*arrays)
        finally:
            _CLIPS_SPREAD.reset(token)

    return jax.vmap(one, spmd_axis_name=BATCH)


def over_heads(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Calls a function, which the compiler cannot split, on each device's share of a batch.

    Args:
      function: of arrays that it takes apart no more than by batch and heads.
      *arrays: `(batch, length, heads, width)`, whose batch and heads are spread
        where they divide evenly.

    Returns:
      The function's result, `(batch, length, heads, width)`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays)
    batch, _, heads, _ = arrays[0].shape
    whole = _CLIPS_SPREAD.get() or batch % batch_parts(mesh)
    spec = PartitionSpec(
        None if whole else BATCH, None, None if heads % mesh.shape["tensor"] else "tensor"
    )
    left = {
        axis
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }
    return jax.shard_map(
        function,
        in_specs=(spec,) * len(arrays),
        out_specs=spec,
        axis_names=left,
        check_vma=False,
    )(*arrays)
