"""What devices along `fsdp` send each other for matrix products: parameters, or activations.

Each of them has a share of a layer's parameters and some clips of the batch. A product needs all of
the one with some of the other. Usually parameters are gathered (`sharding.gather_params`). Where
they are larger than the activations of all clips, each device multiplies the activations of all
clips by its share of the parameters instead, and every device gets the results of its own clips.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from show1_jax.parallel import sharding
from show1_jax.parallel.mesh import BATCH, abstract_mesh, batch_parts

Move = Callable[[jax.Array], jax.Array]
"""Changes where `(batch, length, width)` activations are; their values stay as they are."""


class Exchange(NamedTuple):
    """How a layer's activations move between devices.

    Attributes:
      gather: from each device's clips to all clips on every device; before a product.
      split: all clips on every device, each with a share of the width; after a product whose
        parameters are split by their outputs. A product by parameters that are split by their
        inputs takes it.
      scatter: back to each device's clips.
    """

    gather: Move
    split: Move
    scatter: Move


def exchange(x: jax.Array, parameters: int) -> Exchange:
    """Chooses what the devices along `fsdp` send each other in a transformer layer.

    A layer with attention and a feed-forward network gathers activations as large as its input
    three times, and sums them once.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      x: input of the layer, `(batch, length, width)`.
      parameters: number of elements of the layer's parameters.

    Returns:
      Moves of activations. They do nothing where parameters are gathered, or nothing is split.
    """
    mesh = abstract_mesh()
    if mesh is None or mesh.shape["fsdp"] == 1 or len(x) % batch_parts(mesh):
        return Exchange(_stay, _stay, _stay)
    activations = 4 * x.size // mesh.shape["data"]
    # Products that `tensor` splits as well are left to the compiler.
    if activations > parameters or parameters < sharding.MIN_SPLIT_SIZE or mesh.shape["tensor"] > 1:
        return Exchange(_stay, _stay, sharding.constrain_batch)
    fsdp = mesh.shape["fsdp"]

    def split(y: jax.Array) -> jax.Array:
        return y if y.shape[-1] % fsdp else _move(y, "data", None, "fsdp")

    return Exchange(
        lambda y: _move(y, "data", None, None), split, lambda y: _move(y, BATCH, None, None)
    )


def _stay(x: jax.Array) -> jax.Array:
    return x


def _move(x: jax.Array, *spec: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
