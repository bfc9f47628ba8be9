"""Stage 4, expert translation: from pixels to a larger, sharper clip in latents.

The clip is encoded, noised part of the way, and denoised by a network that was
fine-tuned for just those noise levels (Show-1, section 3.5). The denoiser is
conditioned on the text alone: the clip is only where it starts.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from show1_jax.configuration import build
from show1_jax.data.clip import ClipSpec
from show1_jax.diffusion.schedule import add_noise
from show1_jax.diffusion.solvers import Solver
from show1_jax.errors import InputError
from show1_jax.media import from_uint8, resize_uint8, to_uint8
from show1_jax.models.vae import VAE, VAEConfig
from show1_jax.parallel.frames import over_frames
from show1_jax.parallel.sharding import clips_of_device, in_pieces, over_clips, piece_count
from show1_jax.stages.interpolation import clip_frames
from show1_jax.stages.sampling import POSTERIOR, START, Call, Conditions, draw, run
from show1_jax.stages.stage import CLIP_SECTION, Extra, Stage
from show1_jax.stages.super_resolution import SuperResolution
from show1_jax.stages.training import Example


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
        def some(clips: jax.Array) -> Any:
            at_once = chunk(len(clips), frames_at_once)

            def one(clip: jax.Array) -> Any:
                return jax.lax.map(
                    lambda frame: vae.apply({"params": params}, frame, method=method),
                    clip,
                    batch_size=at_once,
                )

            return over_clips(one, len(clips))(clips)

        return in_pieces(some, frames_at_once, clips)

    return over_frames(part, clips, params)


def chunk(clips: int, frames_at_once: int) -> int:
    """How many frames of each clip a device has in memory together: at least one."""
    return max(1, frames_at_once // clips_of_device(clips))


def to_latents(vae: VAE, mean: jax.Array, logvar: jax.Array, noise: jax.Array) -> jax.Array:
    """A sample of the posterior, scaled to unit variance; all arrays have one shape."""
    return (mean + jnp.exp(0.5 * logvar) * noise) * vae.config.scaling_factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation(Stage):
    """The clip in its final size.

    Attributes:
      strength: the share of the steps that is executed: how far the clip is noised.
      vae_frames: frames encoded or decoded at a time.
      vae_config: the autoencoder that the config describes; a checkpoint's own decides.
      vae: the autoencoder; None until the stage is given one.
      small: height and width of the clips that are translated.
      training_frames: of a training clip.
    """

    name = "translation"
    folder = "show-1-sr2"
    pipeline = "VideoToVideoSDPipeline"
    encoder = "clip"
    networks = ("unet", "vae")
    needs = (SuperResolution.name,)
    depends = {SuperResolution.name: CLIP_SECTION}  # noqa: RUF012

    strength: float = 1.0
    vae_frames: int
    vae_config: VAEConfig
    vae: VAE | None = None
    small: tuple[int, int]
    training_frames: int

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """See `Stage.from_config`."""
        section, small = config[cls.name], config[SuperResolution.name]
        frames = clip_frames(config)
        return cls(
            strength=float(section.strength),
            vae_frames=cls.at_least(section, "vae_frames", 1),
            vae_config=build(VAEConfig, section.vae, f"{cls.name}.vae"),
            small=(small.height, small.width),
            training_frames=config.get("train", {}).get(cls.name, {}).get("frames", frames),
            frames=frames,
            height=section.height,
            width=section.width,
            **cls.common(config),
        )

    @property
    def batch_shape(self) -> tuple[int, int, int, int, int]:
        """The latents of a clip; see `Stage.batch_shape`."""
        config = self.vae_config if self.vae is None else self.vae.config
        size = (self.height // config.downscale, self.width // config.downscale)
        return (1, self.frames, *size, config.latent_channels)

    @property
    def training_clip(self) -> ClipSpec:
        """See `Stage.training_clip`."""
        return ClipSpec(self.training_frames, self.height, self.width, self.fps)

    def size_multiple(self, unet: Any) -> int:
        """See `Stage.size_multiple`; latents are smaller than frames."""
        config = self.vae_config if self.vae is None else self.vae.config
        return super().size_multiple(unet) * config.downscale

    def check(self, solver: Solver) -> None:
        """Raises InputError if `strength` leaves no step."""
        try:
            solver.first_step(self.strength)
        except InputError as error:
            least = math.ceil(1 / self.strength) if self.strength > 0 else None
            advice = f", or at least {least} steps" if least else ""
            raise InputError(f"{self.name}: {error}{advice}") from None

    def step_count(self, solver: Solver) -> int:
        """The steps that `strength` leaves; see `Stage.step_count`."""
        return solver.num_steps - int(solver.first_step(self.strength))

    def other_modules(self, dtype: Any) -> dict[str, nn.Module]:
        """The autoencoder that the config describes."""
        return {"vae": VAE(self.vae_config, dtype)}

    def prepare(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The clips enlarged to the size of the result."""
        (name,) = self.needs
        large = [
            from_uint8(resize_uint8(to_uint8(clip), self.height, self.width))
            for clip in inputs[name]
        ]
        return {name: np.stack(large)}

    def sample(self, call: Call, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Translates clips; see `Stage.sample`.

        Args:
          call: see there.
          inputs: the clips `(batch, frames, height, width, 3)`, in the size of the result.

        Returns:
          `(batch, frames, height, width, 3)`, about [-1, 1].

        Raises:
          InputError: if `strength` leaves no step.
        """

        def tell(done: int, doing: str) -> None:
            if call.progress is not None:
                call.progress(done, steps, doing)

        assert self.vae is not None
        (video,) = (inputs[name] for name in self.needs)
        keys, solver = call.keys(self.name), call.sampler.solver
        first = int(solver.first_step(self.strength))
        steps = solver.num_steps - first
        tell(0, "encoding")
        mean, logvar = encode(self.vae, call.params["vae"], video, self.vae_frames)
        latents = to_latents(self.vae, mean, logvar, draw(keys, POSTERIOR, mean.shape[1:]))
        timesteps = jnp.full(len(call.seeds), solver.timesteps[first])
        alphas = jnp.asarray(solver.config.schedule.alphas_cumprod)
        start = add_noise(alphas, latents, draw(keys, START, mean.shape[1:]), timesteps)
        latents = run(call, start, Conditions(call.text), keys, first)
        tell(steps, "decoding")
        return decode(self.vae, call.params["vae"], latents, self.vae_frames)

    def example(self, key: jax.Array, video: jax.Array, params: Mapping[str, Any]) -> Example:
        """The latents of a clean clip; see `Stage.example`.

        What makes the expert is the objective, which ends at timestep 900.
        """
        assert self.vae is not None
        moments = encode(self.vae, params["vae"], video, self.vae_frames)
        mean, logvar = jax.lax.stop_gradient(moments)
        return Example(to_latents(self.vae, mean, logvar, jax.random.normal(key, mean.shape)))

    def split(self, video: jax.Array, key: jax.Array, params: Mapping[str, Any]) -> Example:
        """The mean latents of a clip; see `Stage.split`."""
        del key
        assert self.vae is not None
        mean, logvar = encode(self.vae, params["vae"], video[None], self.vae_frames)
        return Example(to_latents(self.vae, mean, logvar, jnp.zeros_like(mean)))

    def join(self, pieces: jax.Array, params: Mapping[str, Any]) -> jax.Array:
        """Decodes the one piece; see `Stage.join`."""
        assert self.vae is not None
        return decode(self.vae, params["vae"], pieces[:, 0], self.vae_frames)

    def preview(self, clean: jax.Array, params: Mapping[str, Any]) -> jax.Array:
        """The frame in the middle, decoded; see `Stage.preview`."""
        assert self.vae is not None
        middle = clean.shape[1] // 2
        return decode(self.vae, params["vae"], clean[:, middle : middle + 1], 1)

    def earlier(self, video: jax.Array) -> dict[str, jax.Array]:
        """The clips as they are after they were small; see `Stage.earlier`."""
        small = jax.image.resize(video, (*video.shape[:2], *self.small, 3), "linear")
        return {SuperResolution.name: jax.image.resize(small, video.shape, "cubic")}

    def extras(self, batch: int, frame_parts: int) -> Iterator[Extra]:
        """Encoding and decoding; see `Stage.extras`."""
        # A compiler counts one chunk, and what is left over, however many chunks there are.
        pieces = piece_count(batch, self.vae_frames)
        own, at_once = math.ceil(self.frames / frame_parts), chunk(batch // pieces, self.vae_frames)
        repeats = pieces * own / (at_once * (own >= at_once) + own % at_once)
        _, frames, *latents = self.batch_shape
        video, small = (batch, *self.shape), (batch, frames, *latents)
        yield Extra("encode", encode, "vae", video, self.vae_frames, repeats)
        yield Extra("decode", decode, "vae", small, self.vae_frames, repeats)
