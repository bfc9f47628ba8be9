"""What training means for each part of the cascade: clips, random draws, loss, samples."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from show1_jax.data.clip import ClipSpec
from show1_jax.diffusion.losses import Objective
from show1_jax.diffusion.solvers import make_solver
from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import T5Encoder
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE
from show1_jax.parallel import mesh
from show1_jax.stages import Autoencoder, Part, Stage, autoencoder
from show1_jax.stages.sampling import Call, Sampler
from show1_jax.stages.training import denoising_loss, drop_captions, noised
from show1_jax.text.encoding import encode_packed
from show1_jax.training.step import Loss, Prepare

Encoder = T5Encoder | CLIPText

Sample = Callable[[Any, Any, dict[str, jax.Array], jax.Array], jax.Array]
"""Parameters, constants, batch and `(batch,)` seeds to clips that are to be like the batch's."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One part of the cascade, ready to be trained.

    Attributes:
      part: which.
      module: the network that is trained.
      spec: the clips it is trained on.
      prepare: makes a batch and its random draws into what `loss` takes.
      loss: the `(batch,)` losses, with dropout if the config says so.
      validation_loss: the same without dropout.
      sample: makes clips as the cascade would, from the batch's own conditions.
    """

    part: Part
    module: UNet | VAE
    spec: ClipSpec
    prepare: Prepare
    loss: Loss
    validation_loss: Loss
    sample: Sample


def make_task(part: Part, settings: ConfigDict, encoder: Encoder | None = None) -> Task:
    """Puts a part and the settings of its training together.

    Args:
      part: with its networks; the parameters of those that are not trained are in the constants,
        by name.
      settings: the config's `train` section of the part.
      encoder: the text encoder that the steps run, whose parameters are the constant
        "text_encoder". Batches have tokens and masks then, int `(batch, 2, tokens)`. None if
        batches have embeddings. The constant "empty" is of the empty caption what a batch has.

    Raises:
      InputError: if a setting does not exist.
    """
    if isinstance(part, Autoencoder):
        return _autoencoder_task(part, settings)
    return _denoiser_task(part, settings, encoder)


def _denoiser_task(stage: Stage, settings: ConfigDict, encoder: Encoder | None) -> Task:
    stage.check_training()
    dtype = compute_dtype(settings)
    unet = stage.module(dtype, settings.remat or None)
    objective = Objective(stage.solver.schedule, stage.solver.prediction, **settings.objective)
    solver = make_solver(stage.solver, stage.steps)
    sampler = Sampler(stage.module(dtype), solver, guided=stage.guidance > 1)

    def embed(constants: Any, text: jax.Array) -> jax.Array:
        if encoder is None:
            return text.astype(jnp.float32)
        return encode_packed(encoder, constants["text_encoder"], text)

    def prepare(key: jax.Array, constants: Any, batch: dict[str, jax.Array]) -> Any:
        keys = jax.random.split(key, 3)
        dropout = settings.caption_dropout
        text = drop_captions(keys[0], batch["text"], constants["empty"], dropout)
        example = stage.example(keys[2], pixels(batch), constants)
        return noised(objective, keys[1], example, embed(constants, text))

    def sample(
        params: Any, constants: Any, batch: dict[str, jax.Array], seeds: jax.Array
    ) -> jax.Array:
        empty = jnp.broadcast_to(constants["empty"], batch["text"].shape)
        text = jnp.stack([embed(constants, empty), embed(constants, batch["text"])])
        guidance = jnp.float32(stage.guidance)
        call = Call(sampler, {**constants, "unet": params}, text, seeds, guidance)
        made = stage.sample(call, stage.earlier(pixels(batch)))
        return made[:, None] if stage.image else made

    return Task(
        part=stage,
        module=unet,
        spec=stage.training_clip,
        prepare=prepare,
        loss=functools.partial(denoising_loss, unet, objective, settings.dropout),
        validation_loss=functools.partial(denoising_loss, sampler.unet, objective, False),
        sample=sample,
    )


def _autoencoder_task(part: Autoencoder, settings: ConfigDict) -> Task:
    vae = part.module(compute_dtype(settings))
    weights = (part.kl_weight, part.gradient_weight, part.squared_weight)
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
        part=part,
        module=vae,
        spec=part.training_clip,
        prepare=prepare,
        loss=loss,
        validation_loss=loss,
        sample=sample,
    )


def pixels(batch: dict[str, jax.Array]) -> jax.Array:
    """The batch's clips in [-1, 1]."""
    return batch["video"].astype(jnp.float32) / 127.5 - 1


def compute_dtype(train: ConfigDict) -> Any:
    """What networks compute in; parameters, losses and the optimizer are in fp32 always.

    Args:
      train: settings of a training, whose `dtype` is one of `mesh.DTYPES`.

    Raises:
      InputError: if it is none of them.
    """
    return mesh.compute_dtype(train.dtype, "train dtype")
