"""Builds networks from their `config.json`, with their key tables and parameter shapes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils.epath import Path
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from show1_jax.checkpoints import tables
from show1_jax.checkpoints.fields import parse_json
from show1_jax.checkpoints.keys import KeyTable
from show1_jax.checkpoints.network_config import clip_config, t5_config, vae_config
from show1_jax.checkpoints.unet_config import unet_config
from show1_jax.errors import InputError, why
from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import T5Encoder
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE


@dataclasses.dataclass(frozen=True)
class Network:
    """A module, and the key table that converts its parameters from PyTorch and back."""

    module: nn.Module
    table: KeyTable

    def abstract_params(self) -> dict[str, Any]:
        """Returns the parameter tree as `jax.ShapeDtypeStruct`s."""
        return abstract_params(self.module)

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters by slashed path."""
        return {k: v.shape for k, v in flatten_dict(self.abstract_params(), sep="/").items()}


@functools.cache
def abstract_params(module: nn.Module) -> dict[str, Any]:
    """Returns shapes and dtypes of a network's parameters. Cached; do not modify the result."""

    def init(*inputs: jax.Array) -> Any:
        return module.init(jax.random.key(0), *inputs)["params"]

    return jax.eval_shape(init, *example_inputs(module))


def fresh_params(module: nn.Module, key: jax.Array) -> Any:
    """Random parameters, by the module's own initialisers."""

    def init(key: jax.Array) -> Any:
        inputs = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in example_inputs(module)]
        return module.init(key, *inputs)["params"]

    return jax.jit(init)(key)


def example_inputs(module: nn.Module) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shapes of the smallest inputs that a network accepts."""

    def array(*shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    match module:
        case UNet(config=config):
            size = config.size_multiple
            sample = array(1, 2, size, size, config.in_channels)
            level = (array(1),) if config.noise_level else ()
            return sample, array(1), array(1, 2, config.text_dim), *level
        case VAE(config=config):
            size = 2 ** (len(config.channels) - 1)
            return (array(1, size, size, config.in_channels),)
        case T5Encoder():
            return array(1, 2, dtype=jnp.int32), array(1, 2, dtype=jnp.int32)
        case CLIPText():
            return (array(1, 2, dtype=jnp.int32),)
    raise TypeError(f"{type(module).__name__} is not a network of the cascade")


def network(config: Mapping[str, Any], where: str, dtype: DTypeLike = jnp.float32) -> Network:
    """Builds the network that a released `config.json` describes.

    Args:
      config: the parsed JSON.
      where: its name in error messages.
      dtype: compute dtype.

    Raises:
      InputError: if it describes no network of the cascade.
    """
    kind = config.get("_class_name") or config.get("model_type")
    match kind:
        case "UNet3DConditionModel" | "UNet2DConditionModel":
            return Network(UNet(unet_config(config, where), dtype), tables.UNET)
        case "AutoencoderKL":
            return Network(VAE(vae_config(config, where), dtype), tables.VAE)
        case "t5":
            return Network(T5Encoder(t5_config(config, where), dtype), tables.T5)
        case "clip_text_model":
            return Network(CLIPText(clip_config(config, where), dtype), tables.CLIP)
    raise InputError(
        f"{where}: {kind!r} is not one of UNet3DConditionModel, UNet2DConditionModel, "
        "AutoencoderKL, t5, clip_text_model"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
      InputError: if the file is missing or is not a JSON object.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {why(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value
