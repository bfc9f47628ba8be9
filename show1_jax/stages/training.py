"""What all denoisers share in training: an example, its noise, dropped captions, and its loss.

Each stage's own file says what its example is (`example`). `noised` makes all
the random draws, a clip at a time, so that `denoising_loss` has none of its
own: its value for a clip does not depend on the batch that the clip is in.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from show1_jax.diffusion.losses import Objective, diffusion_loss, draw_timesteps
from show1_jax.diffusion.schedule import add_noise
from show1_jax.models.unet import UNet
from show1_jax.stages.sampling import apply, apply_with_dropout


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


class Noised(NamedTuple):
    """An example with everything that was drawn for it; the batch is every array's first axis.

    Attributes:
      example: the clips and their conditions.
      text: `(batch, tokens, width)` embeddings, some replaced by the empty caption's.
      noise: like `example.clean`.
      timesteps: `(batch,)`.
      keys: `(batch,)` random keys, for dropout.
    """

    example: Example
    text: jax.Array
    noise: jax.Array
    timesteps: jax.Array
    keys: jax.Array


def drop_captions(
    key: jax.Array, text: jax.Array, empty: jax.Array, probability: float
) -> jax.Array:
    """Replaces captions at random by the empty one, as guidance needs (arXiv 2207.12598).

    Args:
      key: a random key.
      text: `(batch, tokens, width)` embeddings, or `(batch, 2, tokens)` tokens and masks.
      empty: the same of the empty caption, without the batch.
      probability: of each caption to be replaced.

    Returns:
      Like `text`.
    """
    dropped = jax.random.bernoulli(key, probability, (len(text), 1, 1))
    return jnp.where(dropped, empty, text)


def noised(objective: Objective, key: jax.Array, example: Example, text: jax.Array) -> Noised:
    """Draws timesteps, noise and dropout keys for a batch.

    Args:
      objective: says which timesteps.
      key: a random key.
      example: the batch.
      text: `(batch, tokens, width)` embeddings.
    """
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    batch = len(example.clean)
    return Noised(
        example,
        text,
        jax.random.normal(noise_key, example.clean.shape),
        draw_timesteps(objective, time_key, batch),
        jax.random.split(dropout_key, batch),
    )


def denoising_loss(
    unet: UNet, objective: Objective, dropout: bool, params: Any, noised: Noised
) -> jax.Array:
    """The loss of each clip of a noised batch.

    Args:
      unet: the denoiser.
      objective: which loss.
      dropout: whether its dropout is on.
      params: its parameters.
      noised: the batch.

    Returns:
      `(batch,)` fp32.
    """
    clean = noised.example.clean.astype(jnp.float32)
    alphas = objective.schedule.alphas_cumprod
    noisy = add_noise(alphas, clean, noised.noise, noised.timesteps)
    sample = noisy
    if noised.example.frames is not None:
        sample = jnp.concatenate([noisy, noised.example.frames], axis=-1)
    inputs = (sample, noised.timesteps, noised.text, noised.example.noise_level)
    if dropout:
        output = apply_with_dropout(unet, {"params": params}, noised.keys, *inputs)
    else:
        output = apply(unet, {"params": params}, *inputs)
    return diffusion_loss(objective, output, clean, noised.noise, noisy, noised.timesteps)
