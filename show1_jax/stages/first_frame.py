"""Stage 3a, the first frame: one frame of the clip, upscaled in pixels by the image denoiser.

It begins the clip that super-resolution makes (Show-1, section 3.4).
"""

from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from show1_jax.stages.interpolation import Interpolation
from show1_jax.stages.keyframes import Keyframes
from show1_jax.stages.sampling import AUGMENTATION, START, Call, Conditions, draw, run
from show1_jax.stages.stage import CLIP_SECTION
from show1_jax.stages.upscaling import SECTION, Upscaler


class FirstFrame(Upscaler):
    """The large first frame `(batch, height, width, 3)`, by the image denoiser."""

    name = "first_frame"
    folder = "IF-II-L-v1.0"
    pipeline = "IFSuperResolutionPipeline"
    size_of = SECTION
    image = True
    depends = {Keyframes.name: CLIP_SECTION, SECTION: CLIP_SECTION}  # noqa: RUF012

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """See `Stage.from_config`."""
        return cls(window=1, frames=1, **cls.common(config))

    def sample(self, call: Call, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Upscales the first frame of each clip; see `Stage.sample`."""
        keys, shape = call.keys(self.name), self.batch_shape[1:]
        level = jnp.full(len(call.seeds), jnp.int32(self.noise_level))
        small = inputs[Interpolation.name][:, :1]
        frames = self.condition(small, draw(keys, AUGMENTATION, shape), level, None)
        conditions = Conditions(call.text, frames, level)
        return run(call, draw(keys, START, shape), conditions, keys)[:, 0]

    def join(self, pieces: jax.Array, params: Mapping[str, Any]) -> jax.Array:
        """The frame of the one piece; see `Stage.join`."""
        del params
        return pieces[:, 0, 0]
