"""What both upscalers in pixels share: how they are conditioned, and a clip's windows.

Both denoisers are conditioned, beside the noisy frames, on the small frames
upsampled and noised to a level that they are told ("noise conditioning
augmentation", Ho et al. 2021). In the clip the first frame of that condition
is the clean, large one: made by the image denoiser for the first window, the
last frame of the window before for all others (Show-1, section 3.4).
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from show1_jax.data.clip import ClipSpec
from show1_jax.diffusion.schedule import NoiseSchedule, add_noise
from show1_jax.errors import InputError
from show1_jax.stages.interpolation import Interpolation, clip_frames
from show1_jax.stages.keyframes import Keyframes
from show1_jax.stages.sampling import AUGMENTATION, draw
from show1_jax.stages.stage import Stage
from show1_jax.stages.training import Example

SECTION = "super_resolution"  # whose frames' size both make


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


def join(windowed: jax.Array, frames: int) -> jax.Array:
    """Clips from their windows; where two meet, the later one's frame is taken.

    Args:
      windowed: `(batch, windows, window, height, width, 3)`.
      frames: how many frames each clip has.

    Returns:
      `(batch, frames, height, width, 3)`.
    """
    video = jnp.zeros((len(windowed), frames, *windowed.shape[3:]))
    for i, at in enumerate(windows(frames, windowed.shape[2])):
        video = video.at[:, at : at + windowed.shape[2]].set(windowed[:, i])
    return video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upscaler(Stage):
    """What the image denoiser and the clips' denoiser share.

    Attributes:
      small: height and width of the frames that are upscaled.
      clip_frames: frames of a whole clip.
      window: frames upscaled together.
      noise_level: the timestep to which the condition is noised.
      noise_schedule: the schedule of that noise.
    """

    needs = (Interpolation.name,)
    conditioned = True
    noise_conditioned = True

    small: tuple[int, int]
    clip_frames: int
    window: int
    noise_level: int
    noise_schedule: NoiseSchedule

    @classmethod
    def common(cls, config: ConfigDict) -> dict[str, Any]:
        """See `Stage.common`."""
        keyframes, section = config[Keyframes.name], config[SECTION]
        return {
            "small": (keyframes.height, keyframes.width),
            "height": section.height,
            "width": section.width,
            "fps": section.fps,
            "clip_frames": clip_frames(config),
        } | super().common(config)

    @property
    def batch_shape(self) -> tuple[int, int, int, int, int]:
        """One window; see `Stage.batch_shape`."""
        return (1, min(self.window, self.frames), self.height, self.width, 3)

    @property
    def clip(self) -> ClipSpec:
        """A whole clip; see `Stage.clip`."""
        return ClipSpec(self.clip_frames, self.height, self.width, self.fps)

    @property
    def training_clip(self) -> ClipSpec:
        """One window; see `Stage.training_clip`."""
        return ClipSpec(self.window, self.height, self.width, self.fps)

    def check_training(self) -> None:
        """Refuses sizes that are no multiples, and a noise level that training never shows."""
        size = (self.height, self.width)
        if any(large % small for large, small in zip(size, self.small, strict=True)):
            raise InputError(
                f"{self.name} is trained on {size[1]}x{size[0]}, but needs a width and height that "
                f"are multiples of the keyframes', {self.small[1]}x{self.small[0]}"
            )
        if self.noise_level >= self.max_noise_level:
            raise InputError(
                f"{self.name} is sampled at noise_level {self.noise_level}, which it would never "
                f"see: make train.{self.name}.max_noise_level larger"
            )

    def condition(
        self, small: jax.Array, noise: jax.Array, level: jax.Array, first_frame: jax.Array | None
    ) -> jax.Array:
        """What the denoiser is shown beside the noisy frames.

        Args:
          small: `(batch, frames, h, w, 3)`.
          noise: `(batch, frames, height, width, 3)`.
          level: `(batch,)` timesteps to which the upsampled frames are noised.
          first_frame: `(batch, height, width, 3)`, clean, for the clips' denoiser.

        Returns:
          Like `noise`.
        """
        upsampled = upsample(small, self.height, self.width)
        frames = augment(upsampled, noise, level, self.noise_schedule)
        return frames if first_frame is None else with_first_frame(frames, first_frame)

    def example(self, key: jax.Array, video: jax.Array, params: Mapping[str, Any]) -> Example:
        """A window and its condition, noised to a random level; see `Stage.example`.

        The network is told the level, so that any can be asked for when sampling.
        """
        del params
        level_key, noise_key = jax.random.split(key)
        video = video.astype(jnp.float32)
        level = jax.random.randint(level_key, (len(video),), 0, self.max_noise_level)
        noise = jax.random.normal(noise_key, video.shape)
        first = None if self.image else video[:, 0]
        frames = self.condition(shrink(video, *self.small), noise, level, first)
        return Example(video, frames, level)

    def split(self, video: jax.Array, key: jax.Array, params: Mapping[str, Any]) -> Example:
        """The windows of a clip, and what they were made from; see `Stage.split`."""
        del params
        window = min(self.window, len(video))
        clean = jnp.stack([video[at : at + window] for at in windows(len(video), window)])
        noise = draw(key[None], AUGMENTATION, clean.shape[1:])
        level = jnp.full(len(clean), self.noise_level)
        first = None if self.image else clean[:, 0]
        return Example(
            clean, self.condition(shrink(clean, *self.small), noise, level, first), level
        )

    def earlier(self, video: jax.Array) -> dict[str, jax.Array]:
        """The clip, small; see `Stage.earlier`."""
        return {Interpolation.name: shrink(video, *self.small)}
