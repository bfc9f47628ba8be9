"""The mesh that a part is trained on."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from show1_jax.checkpoints.networks import abstract_params
from show1_jax.parallel.layout import training_mesh
from show1_jax.parallel.mesh import batch_parts
from show1_jax.stages import Part
from show1_jax.training.settings import check


def part_mesh(
    config: ConfigDict, part: type[Part], devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arranges devices as `config.mesh` says, and as suits the part where that leaves a choice.

    Args:
      config: as in `configs/show1.py`.
      part: which is trained.
      devices: None for all devices.

    Raises:
      InputError: if the mesh or a setting of the training is wrong, or the batch cannot be split
        over the devices.
    """
    settings = config.train[part.name]
    clips = settings.batch_size // max(settings.accumulate, 1)

    def params() -> object:
        return abstract_params(part.from_config(config).module(jnp.float32))

    mesh = training_mesh(config.mesh, clips, params, devices)
    check(settings, f"train.{part.name}", batch_parts(mesh))
    return mesh
