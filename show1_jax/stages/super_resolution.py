"""Stage 3b, super-resolution: the clip upscaled in pixels, window by window.

Each window starts from the last frame of the one before, the first one from the first frame
(Show-1, section 3.4).
"""

from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from show1_jax.stages.first_frame import FirstFrame
from show1_jax.stages.interpolation import Interpolation, clip_frames
from show1_jax.stages.keyframes import Keyframes
from show1_jax.stages.sampling import AUGMENTATION, START, Call, Conditions, draw, run
from show1_jax.stages.stage import CLIP_SECTION
from show1_jax.stages.upscaling import Upscaler, join, upsample, windows


class SuperResolution(Upscaler):
    """The clip, each window continuing from the last frame of the one before."""

    name = "super_resolution"
    folder = "show-1-sr1"
    pipeline = "TextToVideoIFSuperResolutionPipeline_Cond"
    uses = (FirstFrame.name,)
    fallback_is = "upscaled bilinearly"
    depends = {Keyframes.name: CLIP_SECTION}  # noqa: RUF012

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """See `Stage.from_config`."""
        window = cls.at_least(config[cls.name], "window", 2)
        return cls(window=window, frames=clip_frames(config), **cls.common(config))

    @property
    def pieces_shape(self) -> tuple[int, int, int, int, int]:
        """All windows of a clip; see `Stage.pieces_shape`."""
        return (len(list(windows(self.frames, self.batch_shape[1]))), *self.batch_shape[1:])

    def fallback(self, name: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The first frame upscaled bilinearly; see `Stage.fallback`."""
        del name
        frame = jnp.asarray(inputs[Interpolation.name][0])
        return np.asarray(upsample(frame, self.height, self.width))

    def sample(self, call: Call, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Upscales clips window by window; see `Stage.sample`.

        Every window starts from the same noise, as released. Where the frame count
        does not come out even, the last window begins earlier.
        """
        video, first_frame = inputs[Interpolation.name], inputs[FirstFrame.name]
        frames = video.shape[1]
        window = min(self.window, frames)
        shape = (window, self.height, self.width, 3)
        keys = call.keys(self.name)
        level = jnp.full(len(call.seeds), jnp.int32(self.noise_level))
        start, noise = draw(keys, START, shape), draw(keys, AUGMENTATION, shape)
        starts = list(windows(frames, window))
        result = jnp.zeros((len(video), frames, *shape[1:])).at[:, 0].set(first_frame)
        for i, at in enumerate(starts):
            condition = self.condition(video[:, at : at + window], noise, level, result[:, at])
            conditions = Conditions(call.text, condition, level)
            made = run(call.part(i, len(starts)), start, conditions, keys)
            result = result.at[:, at : at + window].set(made)
        return result

    def earlier(self, video: jax.Array) -> dict[str, jax.Array]:
        """The clip, small, and its first frame; see `Stage.earlier`."""
        return super().earlier(video) | {FirstFrame.name: video[:, 0]}

    def join(self, pieces: jax.Array, params: Mapping[str, Any]) -> jax.Array:
        """See `join`."""
        del params
        return join(pieces, self.frames)
