"""Stage 3, super-resolution in pixels: the first frame, then the clip window by window.

Both denoisers are conditioned, beside the noisy frames, on the small frames
upsampled and noised to a level that they are told ("noise conditioning
augmentation", Ho et al. 2021). In the clip the first frame of that condition
is the clean, large one: made by the image denoiser for the first window, the
last frame of the window before for all others (Show-1, section 3.4).
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from show1_jax.diffusion.schedule import NoiseSchedule, add_noise
from show1_jax.errors import InputError
from show1_jax.stages.sampling import (
    AUGMENTATION,
    START,
    Conditions,
    Denoiser,
    Progress,
    clip_keys,
    draw,
    in_parts,
    run,
)
from show1_jax.stages.training import Example

FIRST_FRAME = "first_frame"
STAGE = "super_resolution"


@functools.partial(jax.jit, static_argnums=(1, 2))
def upsample(frames: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear upsampling that keeps the corners: `(..., h, w, c)` to `(..., height, width, c)`."""
    rows = _interpolation(frames.shape[-3], height)
    columns = _interpolation(frames.shape[-2], width)
    return jnp.einsum("yh,xw,...hwc->...yxc", rows, columns, frames, precision="highest")


def _interpolation(size: int, target: int) -> np.ndarray:
    """The `(target, size)` matrix of linear interpolation with aligned corners."""
    positions = np.linspace(0, size - 1, target)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(size))).astype(np.float32)


def shrink(video: jax.Array, height: int, width: int) -> jax.Array:
    """A clip as the stages before would have made it: means of areas, which small pixels show.

    Args:
      video: `(..., frames, h, w, c)`.
      height: of the small clip; h is a multiple of it.
      width: likewise.

    Returns:
      `(..., frames, height, width, c)`.

    Raises:
      InputError: if they are no multiples.
    """
    *lead, tall, wide, channels = video.shape
    if tall % height or wide % width:
        raise InputError(
            f"{wide}x{tall} is no multiple of the keyframes' size, {width}x{height}, which an "
            "upscaler's frames have to be shrunk to"
        )
    areas = (height, tall // height, width, wide // width)
    return video.reshape(*lead, *areas, channels).mean((-4, -2))


@functools.partial(jax.jit, static_argnums=3)
def augment(
    upsampled: jax.Array, noise: jax.Array, level: jax.Array, schedule: NoiseSchedule
) -> jax.Array:
    """The condition: upsampled frames `(batch, frames, h, w, 3)` noised to `level` `(batch,)`."""
    return add_noise(jnp.asarray(schedule.alphas_cumprod), upsampled, noise, level)


def with_first_frame(condition: jax.Array, first_frame: jax.Array) -> jax.Array:
    """`condition` `(batch, frames, ...)` with the clean `first_frame` `(batch, ...)` in front."""
    return condition.at[:, 0].set(first_frame)


def windows(frames: int, window: int) -> Iterator[int]:
    """The first frame of each window; neighbours share a frame, the last ends with the clip.

    Raises:
      InputError: if the window has fewer than two frames.
    """
    if window < 2 <= frames:
        raise InputError(f"a window of {window} frames cannot be continued; take at least 2")
    for start in range(0, max(1, frames - 1), max(1, window - 1)):
        yield max(0, min(start, frames - window))


def sample_first_frame(
    denoiser: Denoiser,
    params: Any,
    text: jax.Array,
    seeds: jax.Array,
    guidance: jax.Array,
    frame: jax.Array,
    size: tuple[int, int],
    noise_level: jax.Array,
    schedule: NoiseSchedule,
    progress: Progress | None = None,
) -> jax.Array:
    """Upscales one frame of each clip with the image denoiser.

    Args:
      denoiser: network and solver.
      params: the network's parameters.
      text: `(2, batch, tokens, width)` T5 embeddings, negative prompts first.
      seeds: `(batch,)`.
      guidance: guidance scale.
      frame: `(batch, h, w, 3)` in [-1, 1].
      size: height and width in pixels.
      noise_level: timestep to which the condition is noised.
      schedule: the schedule of that noise.
      progress: told how many steps are done.

    Returns:
      `(batch, height, width, 3)` in [-1, 1].
    """
    keys = clip_keys(seeds, FIRST_FRAME)
    shape = (1, *size, 3)
    level = jnp.full(len(seeds), noise_level)
    frames = augment(
        upsample(frame[:, None], *size), draw(keys, AUGMENTATION, shape), level, schedule
    )
    conditions = Conditions(text, guidance, keys, frames, level)
    return run(denoiser, params, draw(keys, START, shape), conditions, progress)[:, 0]


def sample(
    denoiser: Denoiser,
    params: Any,
    text: jax.Array,
    seeds: jax.Array,
    guidance: jax.Array,
    video: jax.Array,
    first_frame: jax.Array,
    window: int,
    noise_level: jax.Array,
    schedule: NoiseSchedule,
    progress: Progress | None = None,
) -> jax.Array:
    """Upscales clips, each window continuing from the last frame of the one before.

    Every window starts from the same noise, as released. Where the frame count
    does not come out even, the last window begins earlier.

    Args:
      denoiser: network and solver.
      params: the network's parameters.
      text: `(2, batch, tokens, width)` T5 embeddings, negative prompts first.
      seeds: `(batch,)`.
      guidance: guidance scale.
      video: `(batch, frames, h, w, 3)` in [-1, 1].
      first_frame: `(batch, height, width, 3)` in [-1, 1]; its size is the result's.
      window: frames upscaled together.
      noise_level: timestep to which the condition is noised.
      schedule: the schedule of that noise.
      progress: told how many steps of all windows are done.

    Returns:
      `(batch, frames, height, width, 3)` in [-1, 1].
    """
    frames, size = video.shape[1], first_frame.shape[1:3]
    window = min(window, frames)
    shape = (window, *size, 3)
    keys = clip_keys(seeds, STAGE)
    level = jnp.full(len(seeds), noise_level)
    start, noise = draw(keys, START, shape), draw(keys, AUGMENTATION, shape)
    starts = list(windows(frames, window))
    result = jnp.zeros((len(video), frames, *first_frame.shape[1:])).at[:, 0].set(first_frame)
    for i, at in enumerate(starts):
        condition = augment(upsample(video[:, at : at + window], *size), noise, level, schedule)
        condition = with_first_frame(condition, result[:, at])
        conditions = Conditions(text, guidance, keys, condition, level)
        done = in_parts(progress, i, len(starts))
        result = result.at[:, at : at + window].set(run(denoiser, params, start, conditions, done))
    return result


def taken_apart(
    video: jax.Array,
    small_size: tuple[int, int],
    window: int,
    key: jax.Array,
    noise_level: int,
    schedule: NoiseSchedule,
    keep_first_frame: bool,
) -> Example:
    """The windows of a finished clip, and what they were made from, by either upscaler.

    Args:
      video: `(frames, height, width, 3)`; one frame for the image denoiser.
      small_size: height and width of the clip that it was made from; see `shrink`.
      window: frames upscaled together.
      key: of the clip; see `clip_keys`.
      noise_level: timestep to which the condition is noised.
      schedule: the schedule of that noise.
      keep_first_frame: as for `example`.
    """
    height, width = video.shape[1:3]
    window = min(window, len(video))
    clean = jnp.stack([video[at : at + window] for at in windows(len(video), window)])
    noise = draw(key[None], AUGMENTATION, clean.shape[1:])
    level = jnp.full(len(clean), noise_level)
    frames = augment(upsample(shrink(clean, *small_size), height, width), noise, level, schedule)
    if keep_first_frame:
        frames = with_first_frame(frames, clean[:, 0])
    return Example(clean, frames, level)


def put_together(clean: jax.Array, frames: int) -> jax.Array:
    """The clips of so many frames whose windows `clean` are, the later one's where two meet.

    Args:
      clean: `(batch, windows, window, height, width, 3)`.
      frames: how many frames each clip has.
    """
    video = jnp.zeros((len(clean), frames, *clean.shape[3:]))
    for i, at in enumerate(windows(frames, clean.shape[2])):
        video = video.at[:, at : at + clean.shape[2]].set(clean[:, i])
    return video


def example(
    key: jax.Array,
    video: jax.Array,
    small_size: tuple[int, int],
    schedule: NoiseSchedule,
    max_noise_level: int,
    keep_first_frame: bool,
) -> Example:
    """The training example of either upscaler.

    The condition is noised to a random level, which the network is told, so
    that at sampling time any level can be asked for.

    Args:
      key: a random key.
      video: `(batch, frames, height, width, 3)`; one frame for the image denoiser.
      small_size: height and width of the clips that will be upscaled; see `shrink`.
      schedule: the schedule of that noise.
      max_noise_level: the level is drawn below it.
      keep_first_frame: whether the first frame of the condition is the clean,
        large one, as for clips.

    Returns:
      The clip, its condition and the condition's noise level.
    """
    level_key, noise_key = jax.random.split(key)
    video = video.astype(jnp.float32)
    height, width = video.shape[-3:-1]
    small = shrink(video, *small_size)
    level = jax.random.randint(level_key, (len(video),), 0, max_noise_level)
    noise = jax.random.normal(noise_key, video.shape)
    frames = augment(upsample(small, height, width), noise, level, schedule)
    if keep_first_frame:
        frames = with_first_frame(frames, video[:, 0])
    return Example(video, frames, level)
