"""What training means for each part of the cascade: clips, random draws, loss, samples."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from show1_jax.configuration import build
from show1_jax.data.clip import ClipSpec
from show1_jax.diffusion.losses import Objective
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import SolverConfig, make_solver
from show1_jax.errors import InputError
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.models.vae import VAE, VAEConfig
from show1_jax.parallel import mesh
from show1_jax.stages import autoencoder, interpolation, keyframes, super_resolution, translation
from show1_jax.stages.sampling import Denoiser
from show1_jax.stages.training import Example, denoising_loss, drop_captions, noised
from show1_jax.training.step import Loss, Prepare

PARTS = (
    "vae", "image", "keyframes", "interpolation", "first_frame", "super_resolution", "translation"
)  # fmt: skip
"""What can be trained, in the order in which one builds on another.

All are parts of the cascade but "image": the keyframes' denoiser without its
temporal layers, trained on single frames, for the keyframes to start from
(Show-1, section 3.2, starts them from DeepFloyd's image model). A clip costs
as much as many images, whose captions differ.
"""

Sample = Callable[[Any, Any, dict[str, jax.Array], jax.Array], jax.Array]
"""Parameters, constants, batch and `(batch,)` seeds to clips that are to be like the batch's."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One part of the cascade, ready to be trained.

    Attributes:
      part: which of `PARTS`.
      module: the network that is trained.
      spec: the clips it is trained on.
      encoder: whose text embeddings it needs.
      prepare: makes a batch and its random draws into what `loss` takes.
      loss: the `(batch,)` losses, with dropout if the config says so.
      validation_loss: the same without dropout.
      sample: makes clips as the cascade would, from the batch's own conditions.
    """

    part: str
    module: UNet | VAE
    spec: ClipSpec
    encoder: Literal["t5", "clip"] | None
    prepare: Prepare
    loss: Loss
    validation_loss: Loss
    sample: Sample


def make_task(config: ConfigDict, part: str, vae: VAE | None = None) -> Task:
    """Puts a part's settings together.

    Args:
      config: as in `configs/show1.py`; for "image", from `image_config`.
      part: one of `PARTS`.
      vae: for "translation", the autoencoder whose parameters are in the
        constants under "vae".

    Raises:
      InputError: if a setting does not exist.
    """
    if part == "vae":
        return _autoencoder_task(config)
    train, dtype = config.train[part], compute_dtype(config.train[part])
    solver = solver_config(config[part].solver)
    unet = UNet(
        build(UNetConfig, config[part].unet, f"{part}.unet"), dtype, remat=train.remat or None
    )
    objective = Objective(solver.schedule, solver.prediction, **train.objective)
    denoiser = Denoiser(
        UNet(unet.config, dtype),
        make_solver(solver, config[part].steps),
        guided=config[part].guidance > 1,
    )
    spec, example, sample = _STAGES[part](config, denoiser, vae)

    def prepare(key: jax.Array, constants: Any, batch: dict[str, jax.Array]) -> Any:
        keys = jax.random.split(key, 3)
        text = batch["text"].astype(jnp.float32)
        text = drop_captions(keys[0], text, constants["empty"], train.caption_dropout)
        return noised(objective, keys[1], example(keys[2], constants, pixels(batch)), text)

    def sample_batch(
        params: Any, constants: Any, batch: dict[str, jax.Array], seeds: jax.Array
    ) -> jax.Array:
        positive = batch["text"].astype(jnp.float32)
        text = jnp.stack([jnp.broadcast_to(constants["empty"], positive.shape), positive])
        guidance = jnp.float32(config[part].guidance)
        return sample(params, constants, text, seeds, guidance, pixels(batch))

    return Task(
        part=part,
        module=unet,
        spec=spec,
        encoder="clip" if part == "translation" else "t5",
        prepare=prepare,
        loss=functools.partial(denoising_loss, unet, objective, train.dropout),
        validation_loss=functools.partial(denoising_loss, denoiser.unet, objective, False),
        sample=sample_batch,
    )


def image_config(config: ConfigDict) -> ConfigDict:
    """The config with a section "image": the keyframes', of one frame and without time."""
    section = ConfigDict(config.keyframes.to_dict() | {"frames": 1})
    with section.unlocked():
        section.unet.update(temporal=False, temporal_heads="width")
    return ConfigDict(config.to_dict() | {"image": section})


def pixels(batch: dict[str, jax.Array]) -> jax.Array:
    """The batch's clips in [-1, 1]."""
    return batch["video"].astype(jnp.float32) / 127.5 - 1


def solver_config(section: ConfigDict) -> SolverConfig:
    """The solver that a config's `solver` section describes."""
    settings = section.to_dict()
    if "schedule" in settings:
        settings["schedule"] = build(NoiseSchedule, settings["schedule"], "PART.solver.schedule")
    return build(SolverConfig, settings, "PART.solver")


def compute_dtype(train: ConfigDict) -> Any:
    """What networks compute in; parameters, losses and the optimizer are in fp32 always.

    Args:
      train: settings of a training, whose `dtype` is one of `mesh.DTYPES`.

    Raises:
      InputError: if it is none of them.
    """
    return mesh.compute_dtype(train.dtype, "train dtype")


def _autoencoder_task(config: ConfigDict) -> Task:
    train, section = config.train.vae, config.translation
    vae = VAE(build(VAEConfig, section.vae, "translation.vae"), compute_dtype(train))
    weights = (train.kl_weight, train.gradient_weight, train.squared_weight)
    loss = functools.partial(autoencoder.loss, vae, *weights)
    reconstruct = jax.jit(vae.apply)

    def prepare(key: jax.Array, constants: Any, batch: dict[str, jax.Array]) -> Any:
        del constants
        return autoencoder.example(key, vae, pixels(batch))

    def sample(
        params: Any, constants: Any, batch: dict[str, jax.Array], seeds: jax.Array
    ) -> jax.Array:
        del constants, seeds
        return jnp.asarray(reconstruct({"params": params}, pixels(batch)))

    return Task(
        part="vae",
        module=vae,
        spec=ClipSpec(1, train.height, train.width, section.fps),
        encoder=None,
        prepare=prepare,
        loss=loss,
        validation_loss=loss,
        sample=sample,
    )


_Example = Callable[[jax.Array, Any, jax.Array], Example]
_Stage = tuple[ClipSpec, _Example, Callable[..., jax.Array]]


def _keyframes(part: str, config: ConfigDict, denoiser: Denoiser, vae: VAE | None) -> _Stage:
    section = config[part]
    size = (section.frames, section.height, section.width)

    def example(key: jax.Array, constants: Any, video: jax.Array) -> Example:
        return keyframes.example(video)

    def sample(
        params: Any, constants: Any, text: Any, seeds: Any, guidance: Any, video: Any
    ) -> jax.Array:
        return keyframes.sample(denoiser, params, text, seeds, guidance, size)

    return ClipSpec(*size, section.fps), example, sample


def _interpolation(config: ConfigDict, denoiser: Denoiser, vae: VAE | None) -> _Stage:
    section, train = config.interpolation, config.train.interpolation
    frames, schedule = section.frames_per_gap, denoiser.solver.config.schedule

    def example(key: jax.Array, constants: Any, video: jax.Array) -> Example:
        return interpolation.example(key, video, schedule, train.max_noise_level)

    def sample(
        params: Any, constants: Any, text: Any, seeds: Any, guidance: Any, video: Any
    ) -> jax.Array:
        ends = video[:, jnp.array([0, -1])]
        return interpolation.sample(denoiser, params, text, seeds, guidance, ends, frames)

    size = (config.keyframes.height, config.keyframes.width)
    return ClipSpec(frames, *size, section.fps), example, sample


def _upscaler(part: str, config: ConfigDict, denoiser: Denoiser, vae: VAE | None) -> _Stage:
    section, train = config.super_resolution, config.train[part]
    schedule = build(NoiseSchedule, config[part].noise_schedule, f"{part}.noise_schedule")
    small_size = (config.keyframes.height, config.keyframes.width)
    size = (section.height, section.width)
    if any(large % small for large, small in zip(size, small_size, strict=True)):
        raise InputError(
            f"{part} is trained on {size[1]}x{size[0]}, but needs a width and height that are "
            f"multiples of the keyframes', {small_size[1]}x{small_size[0]}"
        )
    if config[part].noise_level >= train.max_noise_level:
        raise InputError(
            f"{part} is sampled at noise_level {config[part].noise_level}, which it would never "
            f"see: make train.{part}.max_noise_level larger"
        )
    clip = part == super_resolution.STAGE
    frames = section.window if clip else 1

    def example(key: jax.Array, constants: Any, video: jax.Array) -> Example:
        return super_resolution.example(
            key, video, small_size, schedule, train.max_noise_level, keep_first_frame=clip
        )

    def sample(
        params: Any, constants: Any, text: Any, seeds: Any, guidance: Any, video: Any
    ) -> jax.Array:
        small = super_resolution.shrink(video, *small_size)
        level = jnp.int32(config[part].noise_level)
        given = (denoiser, params, text, seeds, guidance)
        if clip:
            return super_resolution.sample(*given, small, video[:, 0], frames, level, schedule)
        made = super_resolution.sample_first_frame(*given, small[:, 0], size, level, schedule)
        return made[:, None]

    return ClipSpec(frames, *size, section.fps), example, sample


def _translation(config: ConfigDict, denoiser: Denoiser, vae: VAE | None) -> _Stage:
    assert vae is not None
    section, train = config.translation, config.train.translation
    small_size = (config.super_resolution.height, config.super_resolution.width)

    def example(key: jax.Array, constants: Any, video: jax.Array) -> Example:
        return translation.example(key, vae, constants["vae"], video, section.vae_frames)

    def sample(
        params: Any, constants: Any, text: Any, seeds: Any, guidance: Any, video: Any
    ) -> jax.Array:
        small = jax.image.resize(video, (*video.shape[:2], *small_size, 3), "linear")
        blurred = jax.image.resize(small, video.shape, "cubic")
        return translation.sample(
            denoiser, vae, params, constants["vae"], text, seeds, guidance, blurred,
            section.strength, section.vae_frames,
        )  # fmt: skip

    spec = ClipSpec(train.frames, section.height, section.width, section.fps)
    return spec, example, sample


_STAGES: dict[str, Callable[[ConfigDict, Denoiser, VAE | None], _Stage]] = {
    "image": functools.partial(_keyframes, "image"),
    "keyframes": functools.partial(_keyframes, "keyframes"),
    "interpolation": _interpolation,
    "first_frame": functools.partial(_upscaler, "first_frame"),
    "super_resolution": functools.partial(_upscaler, "super_resolution"),
    "translation": _translation,
}
