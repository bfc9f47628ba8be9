"""Stage 2, interpolation: frames between the keyframes (Show-1, section 3.3).

The denoiser makes all frames of a gap, both ends included. It is conditioned
on the text and, beside the noisy frames, on a blend in time of the gap's two
keyframes and a mask that marks the ends. All gaps of all clips are one batch.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from show1_jax.diffusion.schedule import NoiseSchedule, add_noise
from show1_jax.errors import InputError
from show1_jax.stages.sampling import START, Conditions, Denoiser, Progress, clip_keys, draw, run
from show1_jax.stages.training import Example

STAGE = "interpolation"


@functools.partial(jax.jit, static_argnums=1)
def condition(keyframes: jax.Array, frames_per_gap: int) -> jax.Array:
    """What the denoiser sees of the keyframes on either side of each gap.

    The paper says that the frames between are zero; the released network was
    made for the linear blend (trilinear interpolation with aligned corners).

    Args:
      keyframes: `(batch, n, height, width, 3)`.
      frames_per_gap: frames from one keyframe to the next, both included.

    Returns:
      `(batch * (n - 1), frames_per_gap, height, width, 4)`: blend and mask.

    Raises:
      InputError: if there is only one keyframe.
    """
    if keyframes.shape[1] < 2:
        raise InputError("one keyframe leaves no gap to interpolate; make at least 2")
    before, after = keyframes[:, :-1, None], keyframes[:, 1:, None]
    weight = jnp.linspace(0, 1, frames_per_gap)[:, None, None, None]
    blend = rearrange(before * (1 - weight) + after * weight, "b g ... -> (b g) ...")
    mask = jnp.zeros((*blend.shape[:-1], 1)).at[:, jnp.array([0, -1])].set(1)
    return jnp.concatenate([blend, mask], axis=-1)


def join(gaps: jax.Array) -> jax.Array:
    """Joins gaps to clips; of the frame that two gaps share, the later one's is taken.

    Args:
      gaps: `(batch, gaps, frames_per_gap, height, width, 3)`.

    Returns:
      `(batch, gaps * (frames_per_gap - 1) + 1, height, width, 3)`.
    """
    body = rearrange(gaps[:, :, :-1], "b g f h w c -> b (g f) h w c")
    return jnp.concatenate([body, gaps[:, -1, -1:]], axis=1)


def sample(
    denoiser: Denoiser,
    params: Any,
    text: jax.Array,
    seeds: jax.Array,
    guidance: jax.Array,
    keyframes: jax.Array,
    frames_per_gap: int,
    progress: Progress | None = None,
) -> jax.Array:
    """Fills the gaps between the keyframes of a batch of clips.

    Every gap of a clip starts from the same noise, as released.

    Args:
      denoiser: network and solver.
      params: the network's parameters.
      text: `(2, batch, tokens, width)` T5 embeddings, negative prompts first.
      seeds: `(batch,)`.
      guidance: guidance scale.
      keyframes: `(batch, n, height, width, 3)` in [-1, 1].
      frames_per_gap: frames from one keyframe to the next, both included.
      progress: told how many steps are done.

    Returns:
      `(batch, (n - 1) * (frames_per_gap - 1) + 1, height, width, 3)` in [-1, 1].

    Raises:
      InputError: if there is only one keyframe.
    """
    batch, n = keyframes.shape[:2]
    frames = condition(keyframes, frames_per_gap)
    keys = jnp.repeat(clip_keys(seeds, STAGE), n - 1)
    conditions = Conditions(jnp.repeat(text, n - 1, axis=1), guidance, keys, frames)
    start = draw(keys, START, (*frames.shape[1:-1], 3))
    gaps = run(denoiser, params, start, conditions, progress)
    return join(gaps.reshape(batch, n - 1, *gaps.shape[1:]))


def taken_apart(video: jax.Array, frames_per_gap: int) -> Example:
    """The gaps of a finished clip, and what they were made from: the inverse of `join`.

    Args:
      video: `(frames, height, width, 3)`.
      frames_per_gap: frames from one keyframe to the next, both included.

    Raises:
      InputError: if there is no gap.
    """
    step = frames_per_gap - 1
    frames = condition(video[None, ::step], frames_per_gap)
    gaps = [video[at : at + frames_per_gap] for at in range(0, len(video) - 1, step)]
    return Example(jnp.stack(gaps), frames)


def example(
    key: jax.Array, video: jax.Array, schedule: NoiseSchedule, max_noise_level: int
) -> Example:
    """The training example of one gap.

    Its two keyframes are noised a little, so that the network learns to live
    with imperfect ones (Show-1, section 3.3). It is not told how much.

    Args:
      key: a random key.
      video: `(batch, frames, height, width, 3)`; the ends are the keyframes.
      schedule: the schedule of that noise.
      max_noise_level: the level is drawn below it; 1 adds next to none.

    Returns:
      The clip, and blend and mask of its noised ends.
    """
    level_key, noise_key = jax.random.split(key)
    ends = video[:, jnp.array([0, -1])].astype(jnp.float32)
    level = jax.random.randint(level_key, (len(video),), 0, max_noise_level)
    noise = jax.random.normal(noise_key, ends.shape)
    ends = add_noise(schedule.alphas_cumprod, ends, noise, level)
    return Example(video, condition(ends, video.shape[1]))
