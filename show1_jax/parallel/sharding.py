"""How parameters, batches and activations are sharded over the mesh.

Every function here reads the mesh set by `jax.set_mesh`. Without one, arrays are on the default
device and nothing is split.

Parameters are split over `tensor` as their layer computes (Shoeybi et al. 2019, section 3): the
first of two products by its outputs, the second by its inputs, so that devices sum only the
result. (The gated layers of the denoisers also exchange their halves, because the released
networks compute both in one product.) Large parameters are split over `fsdp` as well, along the
longest remaining side. The optimizer's state has the paths and shapes of the parameters at its
leaves, so the same rules split it.

One ContextVar is set while `over_clips` maps a function: `_CLIPS_MAPPED`. `shard_map_heads`
reads it.
"""

import contextvars
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
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

from show1_jax.parallel.mesh import (
    BATCH,
    abstract_mesh,
    batch_parts,
    concrete_mesh,
    current_platform,
    is_shared,
    rounded_up,
)

# Which side of a parameter is split over `tensor`, by the end of its slashed path.
TENSOR = (
    (r"\b(to_[qkv]|add_[kv]_proj|ff_in|ff_gate)/(kernel|bias)", -1),
    (r"\b(to_out|ff_out)/kernel", -2),
    (r"\bconv[13]/(kernel|bias)", -1),
    (r"\bconv[24]/kernel", -2),
)
MIN_SPLIT_SIZE = 2**16  # elements; gathering smaller arrays costs more than splitting them saves
MIN_HINT_SHARE = 0.05  # of the parameters

# Whether `over_clips` maps the current function over the clips of a batch. The mapped axis is
# split over `BATCH` then, and no other axis can be.
_CLIPS_MAPPED: contextvars.ContextVar[bool] = contextvars.ContextVar("clips_mapped", default=False)


def parameter_spec(mesh: Mesh | AbstractMesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns how to split a parameter. Only sides that divide evenly are split.

    Args:
      mesh: with all `parallel.mesh.AXES`.
      path: of the parameter, with slashes.
      shape: of the parameter.
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    axes: list[str | None] = [None] * len(shape)
    for pattern, side in TENSOR if tensor > 1 else ():
        if re.search(pattern + "$", path) and len(shape) >= -side:
            if not shape[side] % tensor:
                axes[side] = "tensor"
            break
    if fsdp > 1 and math.prod(shape) >= MIN_SPLIT_SIZE:
        sides = range(len(shape))
        free = [side for side in sides if axes[side] is None and not shape[side] % fsdp]
        if free:
            axes[max(free, key=lambda side: (shape[side], side))] = "fsdp"
    return PartitionSpec(*axes)


def shardings(tree: Any) -> Any:
    """Returns the shardings of parameters, or of a state that contains some.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      A tree of the same structure.
    """
    mesh = concrete_mesh()

    def sharding(path: Any, leaf: Any) -> Sharding:
        if mesh is None:
            return SingleDeviceSharding(jax.devices()[0])
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, parameter_spec(mesh, name, leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def fsdp_hint(params: Any) -> str:
    """Recommends a size of `fsdp` that splits more of the parameters.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      A sentence; "" if the mesh leaves less than `MIN_HINT_SHARE` of the parameters unsplit, or
      no other size splits more.
    """
    mesh = concrete_mesh()
    if mesh is None or (fsdp := mesh.shape["fsdp"]) == 1:
        return ""
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def whole(size: int) -> float:
        """Returns the share of large parameters that have no side divisible by `size`."""
        sides = tuple((mesh.shape | {"fsdp": size}).values())
        other = AbstractMesh(sides, mesh.axis_names)
        left = (
            math.prod(shape)
            for path, shape in shapes.items()
            if "fsdp" not in parameter_spec(other, path, shape)
        )
        return sum(n for n in left if n >= MIN_SPLIT_SIZE) / sum(map(math.prod, shapes.values()))

    if (share := whole(fsdp)) < MIN_HINT_SHARE:
        return ""
    better = [n for n in range(2, fsdp) if not fsdp % n and whole(n) < MIN_HINT_SHARE]
    if not better:
        return ""
    return (
        f"fsdp leaves {share:.0%} of the parameters whole on every device, because none of their "
        f"sides is divisible by {fsdp}; set mesh.fsdp={better[-1]}, and mesh.data for the other "
        "devices"
    )


def gather_params(params: Any, dtype: DTypeLike) -> Any:
    """Gathers a layer's parameters along `fsdp`, and scatters their gradients.

    Without this the compiler may gather the activations of all clips instead.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      params: of one layer.
      dtype: compute dtype. Parameters that are split over `fsdp` are cast to it first.

    Returns:
      The parameters, none of them split over `fsdp`.
    """
    mesh = abstract_mesh()
    if mesh is None or mesh.shape["fsdp"] == 1:
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
    """Adds shardings to `jax.ShapeDtypeStruct`s; see `shardings`.

    Reads the mesh set by `jax.set_mesh`.
    """
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree),
    )


def in_kernel_order(params: Any) -> Any:
    """Orders parameters in memory as a GPU's kernels read them; to be done before sampling.

    cuDNN reads kernels of convolutions by output channel. Where they are stored otherwise, XLA
    makes a second copy of all, and keeps it as long as the loop over the steps runs.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      params: arrays, of which those on devices are taken over, or shapes with shardings.

    Returns:
      A tree of the same shapes. On other platforms, `params`.
    """
    if current_platform()[0] != "gpu":
        return params

    def ordered(leaf: Any) -> Any:
        if leaf.ndim < 3 or isinstance(leaf, np.ndarray):  # convolutions alone have more sides
            return leaf
        order = Layout((leaf.ndim - 1, *range(leaf.ndim - 1)))
        stored = Format(order, leaf.sharding)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=stored)
        return jax.device_put(leaf, stored, donate=True)

    return jax.tree.map(ordered, params)


def put_batch(tree: Any, axis: int = 0) -> Any:
    """Puts arrays on the devices, split by clips if the clips divide evenly.

    Reads the mesh set by `jax.set_mesh`. If several processes share it, each of them must pass
    the whole arrays.

    Args:
      tree: arrays.
      axis: of the clips.
    """
    mesh = concrete_mesh()

    def put(array: Any) -> jax.Array:
        even = mesh is not None and not np.shape(array)[axis] % batch_parts(mesh)
        return put_array(array, *(None,) * axis, BATCH) if even else put_array(array)

    return jax.tree.map(put, tree)


def put_padded(tree: Any) -> Any:
    """Puts arrays like `put_batch`, and repeats the last clip until the clips divide evenly."""
    mesh = concrete_mesh()
    parts = 1 if mesh is None else batch_parts(mesh)

    def pad(array: np.ndarray) -> np.ndarray:
        more = rounded_up(len(array), parts) - len(array)
        return np.pad(array, ((0, more), *((0, 0),) * (array.ndim - 1)), "edge")

    return put_batch(jax.tree.map(pad, tree))


def put_array(array: Any, *axes: Any) -> jax.Array:
    """Puts an array on the devices, its sides split over mesh axes.

    Reads the mesh set by `jax.set_mesh`. If several processes share it, each of them must pass
    the whole array.

    Args:
      array: any.
      *axes: mesh axis, or axes, of each side; None for sides that are not split.
    """
    mesh = concrete_mesh()
    array = np.asarray(array) if not isinstance(array, jax.Array) else array
    if mesh is None:
        return jax.device_put(array)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    if is_shared(mesh):
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
    return jax.device_put(array, sharding)


def own_rows(batch_size: int) -> list[int]:
    """Returns the indices of the clips of a batch that this process's devices hold.

    Reads the mesh set by `jax.set_mesh`.
    """
    mesh = concrete_mesh()
    if mesh is None:
        return list(range(batch_size))
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for own in slices if own for row in range(batch_size)[own[0]]})


def put_rows(tree: Any, batch_size: int) -> Any:
    """Puts arrays like `put_batch`, but each process passes only its `own_rows`.

    Args:
      tree: arrays of this process's rows.
      batch_size: number of rows of all processes.
    """
    mesh = concrete_mesh()
    if mesh is None or not is_shared(mesh):
        return put_batch(tree)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(
            sharding, array, (batch_size, *array.shape[1:])
        ),
        tree,
    )


def constrain_batch(x: jax.Array) -> jax.Array:
    """Constrains an activation to be split by clips, if the clips divide evenly.

    The compiler then gathers parameters that are split over `fsdp`, instead of activations.

    Reads the mesh set by `jax.set_mesh`. Within `over_clips` it constrains the mapped axis.

    Args:
      x: `(batch, ...)`.
    """
    mesh = abstract_mesh()
    if mesh is None or mesh.size == 1:
        return x
    clips = PartitionSpec.UNCONSTRAINED if len(x) % batch_parts(mesh) else BATCH
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(clips, *rest))


def clips_of_device(clips: int) -> int:
    """Returns how many clips of a batch each device has.

    Reads the mesh set by `jax.set_mesh`.
    """
    mesh = abstract_mesh()
    parts = 1 if mesh is None else batch_parts(mesh)
    return clips if clips % parts else clips // parts


def over_clips(function: Callable[..., Any], clips: int) -> Callable[..., Any]:
    """Maps a function over the clips of a batch (`jax.vmap`), which stay split over the devices.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      function: of arrays of one clip.
      clips: in the batch.
    """
    mesh = abstract_mesh()
    if mesh is None or mesh.size == 1 or clips % batch_parts(mesh):
        return jax.vmap(function)

    def one(*arrays: Any) -> Any:
        token = _CLIPS_MAPPED.set(True)
        try:
            return function(*arrays)
        finally:
            _CLIPS_MAPPED.reset(token)

    return jax.vmap(one, spmd_axis_name=BATCH)


def piece_count(batch: int, at_once: int) -> int:
    """In how many equal pieces, one after the other, `in_pieces` treats a batch.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      batch: rows on all devices.
      at_once: how many of them a device may have in a piece, at least one.
    """
    own = clips_of_device(batch)
    return next(count for count in range(1, own + 1) if not own % count and own // count <= at_once)


def in_pieces(function: Callable[..., Any], at_once: int, *arrays: Any) -> Any:
    """Applies a function to a batch piece by piece, so that less of its work is in memory.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      function: of arrays of fewer rows; it treats each row alone.
      at_once: see `piece_count`.
      *arrays: `(batch, ...)`, trees of such, or None.

    Returns:
      The function's result for all rows, `(batch, ...)`.
    """
    (batch,) = {len(leaf) for leaf in jax.tree.leaves(arrays)}
    own, pieces = clips_of_device(batch), piece_count(batch, at_once)
    if pieces == 1:
        return function(*arrays)
    parts, rows = batch // own, own // pieces

    def split(x: jax.Array) -> jax.Array:
        each = x.reshape(parts, pieces, rows, *x.shape[1:]).swapaxes(0, 1)
        return each.reshape(pieces, parts * rows, *x.shape[1:])

    def join(x: jax.Array) -> jax.Array:
        each = x.reshape(pieces, parts, rows, *x.shape[2:]).swapaxes(0, 1)
        return each.reshape(batch, *x.shape[2:])

    made = jax.lax.map(lambda piece: function(*piece), jax.tree.map(split, arrays))
    return jax.tree.map(join, made)


def shard_map_heads(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Calls a function on each device's share of the batch and the heads.

    This is for functions that the compiler cannot split, such as Pallas kernels.

    Reads the mesh set by `jax.set_mesh`, and whether `over_clips` maps the caller.

    Args:
      function: treats each element of the batch and each head independently.
      *arrays: `(batch, length, heads, width)`. Batch and heads are split if they divide evenly.

    Returns:
      The function's result, `(batch, length, heads, width)`.
    """
    mesh = abstract_mesh()
    if mesh is None or mesh.size == 1:
        return function(*arrays)
    batch, _, heads, _ = arrays[0].shape
    whole = _CLIPS_MAPPED.get() or batch % batch_parts(mesh)
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
