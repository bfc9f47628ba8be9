"""Stage 4, expert translation: from pixels to a larger, sharper clip in latents.

The clip is encoded, noised part of the way, and denoised by a network that was
fine-tuned for just those noise levels (Show-1, section 3.5). The denoiser is
conditioned on the text alone: the clip is only where it starts.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from show1_jax.diffusion.schedule import add_noise
from show1_jax.models.vae import VAE
from show1_jax.parallel.frames import over_frames
from show1_jax.parallel.sharding import clips_of_device, over_clips
from show1_jax.stages.sampling import (
    POSTERIOR,
    START,
    Conditions,
    Denoiser,
    Progress,
    clip_keys,
    draw,
    run,
)
from show1_jax.stages.training import Example

STAGE = "translation"


@functools.partial(jax.jit, static_argnums=(0, 3))
def encode(vae: VAE, params: Any, video: jax.Array, frames_at_once: int) -> tuple[Any, Any]:
    """Mean and log variance of a clip's latents, a few frames at a time.

    Args:
      vae: the autoencoder.
      params: its parameters.
      video: `(batch, frames, height, width, 3)` in [-1, 1].
      frames_at_once: how many frames a device has in memory together; see `chunk`.

    Returns:
      Two arrays `(batch, frames, height / 8, width / 8, 4)`.
    """
    return _each_frame(vae, params, "encode", video, frames_at_once)


@functools.partial(jax.jit, static_argnums=(0, 3))
def decode(vae: VAE, params: Any, latents: jax.Array, frames_at_once: int) -> jax.Array:
    """Decodes scaled latents, the inverse of `encode` followed by `to_latents`.

    Args:
      vae: the autoencoder.
      params: its parameters.
      latents: `(batch, frames, h, w, 4)`.
      frames_at_once: how many frames a device has in memory together; see `chunk`.

    Returns:
      `(batch, frames, 8 h, 8 w, 3)`, not clipped.
    """
    return _each_frame(vae, params, "decode", latents / vae.config.scaling_factor, frames_at_once)


def _each_frame(vae: VAE, params: Any, method: str, clips: jax.Array, frames_at_once: int) -> Any:
    """Applies a method of the autoencoder to frames, so many at a time on each device."""

    def part(clips: jax.Array, params: Any) -> Any:
        def one(clip: jax.Array) -> Any:
            return jax.lax.map(
                lambda frame: vae.apply({"params": params}, frame, method=method),
                clip,
                batch_size=at_once,
            )

        at_once = chunk(len(clips), frames_at_once)
        return over_clips(one, len(clips))(clips)

    return over_frames(part, clips, params)


def chunk(clips: int, frames_at_once: int) -> int:
    """How many frames of each clip a device has in memory together: one at the least."""
    return max(1, frames_at_once // clips_of_device(clips))


def to_latents(vae: VAE, mean: jax.Array, logvar: jax.Array, noise: jax.Array) -> jax.Array:
    """A sample of the posterior, scaled to unit variance; all arrays have one shape."""
    return (mean + jnp.exp(0.5 * logvar) * noise) * vae.config.scaling_factor


def sample(
    denoiser: Denoiser,
    vae: VAE,
    params: Any,
    vae_params: Any,
    text: jax.Array,
    seeds: jax.Array,
    guidance: jax.Array,
    video: jax.Array,
    strength: float,
    vae_frames: int,
    progress: Progress | None = None,
) -> jax.Array:
    """Translates clips.

    Args:
      denoiser: network and solver.
      vae: the autoencoder.
      params: the denoiser's parameters.
      vae_params: the autoencoder's parameters.
      text: `(2, batch, tokens, width)` CLIP embeddings, negative prompts first.
      seeds: `(batch,)`.
      guidance: guidance scale.
      video: `(batch, frames, height, width, 3)` in [-1, 1], in the wanted size.
      strength: the share of the steps that is executed: how far the clip is noised.
      vae_frames: frames encoded or decoded at a time.
      progress: told how many steps are done.

    Returns:
      `(batch, frames, height, width, 3)`, about [-1, 1].

    Raises:
      InputError: if `strength` leaves no step.
    """

    def tell(done: int, doing: str) -> None:
        if progress is not None:
            progress(done, steps, doing)

    keys = clip_keys(seeds, STAGE)
    solver = denoiser.solver
    first = int(solver.first_step(strength))
    steps = solver.num_steps - first
    tell(0, "encoding")
    mean, logvar = encode(vae, vae_params, video, vae_frames)
    latents = to_latents(vae, mean, logvar, draw(keys, POSTERIOR, mean.shape[1:]))
    timesteps = jnp.full(len(seeds), solver.timesteps[first])
    alphas = jnp.asarray(solver.config.schedule.alphas_cumprod)
    start = add_noise(alphas, latents, draw(keys, START, mean.shape[1:]), timesteps)
    latents = run(denoiser, params, start, Conditions(text, guidance, keys), progress, first)
    tell(steps, "decoding")
    return decode(vae, vae_params, latents, vae_frames)


def example(
    key: jax.Array, vae: VAE, vae_params: Any, video: jax.Array, vae_frames: int
) -> Example:
    """The training example of expert translation: the latents of a clean clip.

    What makes the expert is the objective, which ends at timestep 900.

    Args:
      key: a random key.
      vae: the autoencoder, which is not trained with the denoiser.
      vae_params: its parameters.
      video: `(batch, frames, height, width, 3)` in [-1, 1].
      vae_frames: frames encoded at a time.
    """
    mean, logvar = jax.lax.stop_gradient(encode(vae, vae_params, video, vae_frames))
    return Example(to_latents(vae, mean, logvar, jax.random.normal(key, mean.shape)))
