"""What all denoisers share in training: an example, dropped captions, and its loss.

Each stage's own file says what its example is (`example`); `denoising_loss`
noises it and asks the network.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from show1_jax.diffusion.losses import Objective, diffusion_loss, draw_timesteps
from show1_jax.diffusion.schedule import add_noise
from show1_jax.models.unet import UNet


class Example(NamedTuple):
    """A batch as a denoiser sees it.

    Attributes:
      clean: `(batch, frames, height, width, channels)`, what it is to recover.
      frames: its condition, concatenated to the noisy `clean`; None for none.
      noise_level: `(batch,)` timesteps to which `frames` was noised, for
        networks that are told; else None.
    """

    clean: jax.Array
    frames: jax.Array | None = None
    noise_level: jax.Array | None = None


def drop_captions(
    key: jax.Array, text: jax.Array, empty: jax.Array, probability: float
) -> jax.Array:
    """Replaces captions at random by the empty one, as guidance needs (arXiv 2207.12598).

    Args:
      key: a random key.
      text: `(batch, tokens, width)` embeddings.
      empty: `(tokens, width)`, the embedding of the empty caption.
      probability: of each caption to be replaced.

    Returns:
      `(batch, tokens, width)`.
    """
    dropped = jax.random.bernoulli(key, probability, (len(text), 1, 1))
    return jnp.where(dropped, empty, text)


def denoising_loss(
    unet: UNet,
    objective: Objective,
    params: Any,
    key: jax.Array,
    example: Example,
    text: jax.Array,
) -> jax.Array:
    """The loss of each clip of a batch, noised to a random timestep.

    Args:
      unet: the denoiser.
      objective: which loss.
      params: the denoiser's parameters.
      key: a random key, for timesteps, noise and dropout.
      example: the batch.
      text: `(batch, tokens, width)` embeddings.

    Returns:
      `(batch,)` fp32.
    """
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    clean = example.clean.astype(jnp.float32)
    timesteps = draw_timesteps(objective, time_key, len(clean))
    noise = jax.random.normal(noise_key, clean.shape)
    noisy = add_noise(objective.schedule.alphas_cumprod, clean, noise, timesteps)
    sample = noisy
    if example.frames is not None:
        sample = jnp.concatenate([noisy, example.frames], axis=-1)
    output = unet.apply(
        {"params": params}, sample, timesteps, text, example.noise_level,
        train=True, rngs={"dropout": dropout_key},
    )  # fmt: skip
    return diffusion_loss(objective, jnp.asarray(output), clean, noise, noisy, timesteps)
