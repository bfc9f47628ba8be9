"""Stage 2, interpolation: frames between the keyframes (Show-1, section 3.3).

The denoiser makes all frames of a gap, both ends included. It is conditioned
on the text and, beside the noisy frames, on a blend in time of the gap's two
keyframes and a mask that marks the ends. All gaps of all clips are one batch.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from ml_collections import ConfigDict

from show1_jax.diffusion.schedule import add_noise
from show1_jax.diffusion.solvers import Solver
from show1_jax.errors import InputError
from show1_jax.stages.keyframes import Keyframes
from show1_jax.stages.sampling import START, Call, Conditions, draw, run
from show1_jax.stages.stage import CLIP_SECTION, Stage
from show1_jax.stages.training import Example


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


def clip_frames(config: ConfigDict) -> int:
    """How many frames the keyframes and those between them are."""
    keyframes, gap = config[Keyframes.name].frames, config[Interpolation.name].frames_per_gap
    return (keyframes - 1) * (gap - 1) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolation(Stage):
    """The clip between and with the keyframes.

    Attributes:
      keyframes: how many there are.
      frames_per_gap: frames from one keyframe to the next, both included.
    """

    name = "interpolation"
    folder = "show-1-interpolation"
    pipeline = "TextToVideoIFInterpPipeline"
    needs = (Keyframes.name,)
    size_of = Keyframes.name
    conditioned = True
    depends = {Keyframes.name: CLIP_SECTION}  # noqa: RUF012
    filter_name = "blending"

    keyframes: int
    frames_per_gap: int

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """See `Stage.from_config`."""
        keyframes = config[Keyframes.name]
        return cls(
            frames_per_gap=cls.at_least(config[cls.name], "frames_per_gap", 2),
            keyframes=keyframes.frames,
            frames=clip_frames(config),
            height=keyframes.height,
            width=keyframes.width,
            **cls.common(config),
        )

    @property
    def batch_shape(self) -> tuple[int, int, int, int, int]:
        """All gaps of a clip; see `Stage.batch_shape`."""
        return (self.keyframes - 1, self.frames_per_gap, self.height, self.width, 3)

    def check(self, solver: Solver) -> None:
        """Raises InputError if there is no gap."""
        if self.keyframes < 2:
            raise InputError(
                f"{Keyframes.name}.frames is {self.keyframes}, but {self.name} needs at least 2"
            )

    def sample(self, call: Call, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Fills the gaps between the keyframes; see `Stage.sample`.

        Every gap of a clip starts from the same noise, as released.

        Raises:
          InputError: if there is only one keyframe.
        """
        keyframes = inputs[Keyframes.name]
        batch, n = keyframes.shape[:2]
        frames = condition(keyframes, self.frames_per_gap)
        keys = jnp.repeat(call.keys(self.name), n - 1)
        conditions = Conditions(jnp.repeat(call.text, n - 1, axis=1), frames)
        start = draw(keys, START, (*frames.shape[1:-1], 3))
        gaps = run(call, start, conditions, keys)
        return join(gaps.reshape(batch, n - 1, *gaps.shape[1:]))

    def example(self, key: jax.Array, video: jax.Array, params: Mapping[str, Any]) -> Example:
        """One gap, blend and mask of its noised ends; see `Stage.example`.

        The two keyframes are noised a little, so that the network learns to live
        with imperfect ones (Show-1, section 3.3). It is not told how much.
        """
        del params
        level_key, noise_key = jax.random.split(key)
        ends = video[:, jnp.array([0, -1])].astype(jnp.float32)
        level = jax.random.randint(level_key, (len(video),), 0, self.max_noise_level)
        noise = jax.random.normal(noise_key, ends.shape)
        ends = add_noise(self.solver.schedule.alphas_cumprod, ends, noise, level)
        return Example(video, condition(ends, video.shape[1]))

    def split(self, video: jax.Array, key: jax.Array, params: Mapping[str, Any]) -> Example:
        """The gaps of a clip, and what they were made from; see `Stage.split`.

        Raises:
          InputError: if there is no gap.
        """
        del key, params
        step = self.frames_per_gap - 1
        frames = condition(video[None, ::step], self.frames_per_gap)
        gaps = [video[at : at + self.frames_per_gap] for at in range(0, len(video) - 1, step)]
        return Example(jnp.stack(gaps), frames)

    def join(self, pieces: jax.Array, params: Mapping[str, Any]) -> jax.Array:
        """See `join`."""
        del params
        return join(pieces)

    def earlier(self, video: jax.Array) -> dict[str, jax.Array]:
        """The ends of a gap; see `Stage.earlier`."""
        return {Keyframes.name: video[:, jnp.array([0, -1])]}

    def filtered(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The keyframes blended linearly; see `Stage.filtered`."""
        keyframes = inputs[Keyframes.name]
        places = np.linspace(0, len(keyframes) - 1, self.frames)
        before = np.minimum(places.astype(int), len(keyframes) - 2)
        share = (places - before)[:, None, None, None]
        blend = (1 - share) * keyframes[before] + share * keyframes[before + 1]
        return (blend + 0.5).astype(np.uint8)
