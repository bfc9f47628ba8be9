"""The programs of each stage, to be compiled without parameters or devices."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from show1_jax.adapters import customize
from show1_jax.aot.prediction import Program, predict
from show1_jax.cascade import STAGES, sample_size
from show1_jax.checkpoints.networks import abstract_params
from show1_jax.checkpoints.released import sampling_params
from show1_jax.configuration import build
from show1_jax.diffusion.solvers import make_solver
from show1_jax.errors import InputError
from show1_jax.models.clip import CLIPText, CLIPTextConfig
from show1_jax.models.t5 import T5Config, T5Encoder
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.models.vae import VAE, VAEConfig
from show1_jax.parallel import mesh
from show1_jax.parallel.mesh import BATCH, rounded_up
from show1_jax.parallel.sharding import placed, shardings
from show1_jax.stages import sampling, translation
from show1_jax.stages.sampling import Conditions, Denoiser
from show1_jax.text import encoding
from show1_jax.text.tokenizers import LENGTH
from show1_jax.training.initialise import fresh_params
from show1_jax.training.optimizer import make_optimizer
from show1_jax.training.settings import check
from show1_jax.training.step import init_state, train_step
from show1_jax.training.tasks import PARTS, compute_dtype, image_config, make_task, solver_config
from show1_jax.training.trainable import split


def predict_training(config: ConfigDict, name: str, as_json: bool) -> None:
    """Prints what a training step of a part, or of all, would take on a topology.

    Raises:
      InputError: if the topology or a setting is wrong.
    """
    if "customize" in config:

        def customization(split: int) -> Iterator[Program]:
            check(config.customize, "customize", split)
            yield customization_program(config)

        predict(customization, config.mesh, name, as_json)
        return
    parts = [config.stage] if config.stage else PARTS
    for part in parts:
        if part not in PARTS:
            raise InputError(f"there is no part {part!r} to train; take {', '.join(PARTS)}")

    def programs(split: int) -> Iterator[Program]:
        for part in parts:
            check(config.train[part], f"train.{part}", split)
        for part in parts:
            yield training_program(config, part)

    predict(programs, config.mesh, name, as_json)


def predict_sampling(
    config: ConfigDict, stages: Sequence[str] | None, name: str, as_json: bool
) -> None:
    """Prints what a step of sampling's stages would take on a topology.

    Args:
      config: as in `configs/show1.py`.
      stages: of "t5", "clip" and `STAGES`; None for all whose sizes the config has.
      name: of the topology.
      as_json: see `predict`.

    Raises:
      InputError: if the topology, a stage or a setting is wrong.
    """
    encoders = [encoder for encoder in ("t5", "clip") if encoder in config.text]
    chosen = stages or [*encoders, *STAGES]
    for stage in chosen:
        if stage not in ("t5", "clip", *STAGES):
            raise InputError(f"there is no stage {stage!r}: take t5, clip, {', '.join(STAGES)}")
    if config.batch_size < 1:
        raise InputError(f"batch_size is {config.batch_size}, but must be at least 1")

    def programs(parts: int) -> Iterator[Program]:
        for stage in chosen:
            yield from sampling_programs(config, stage, parts)

    predict(programs, config.mesh, name, as_json)


def training_program(config: ConfigDict, part: str) -> Program:
    """One step of a part's training; under a mesh.

    Args:
      config: as in `configs/show1.py`.
      part: one of `PARTS`.
    """
    if part == "image":
        config = image_config(config)
    settings = config.train[part]
    vae = None
    if part == "translation":
        vae = VAE(
            build(VAEConfig, config.translation.vae, "translation.vae"), compute_dtype(settings)
        )
    task, optimizer = make_task(config, part, vae), make_optimizer(settings)
    seed = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)

    def start(key: jax.Array) -> Any:
        params = fresh_params(task.module, key)
        return init_state(optimizer, *split(params, settings.trainable))

    state, spec = placed(jax.eval_shape(start, seed)), task.spec
    size = (settings.batch_size, spec.frames, spec.height, spec.width, 3)
    batch, constants = {"video": clips(size, jnp.uint8)}, {}
    if task.encoder:
        tokens, width = text_size(config, part)
        batch["text"] = clips((settings.batch_size, tokens, width), jnp.float16)
        constants["empty"] = whole((tokens, width), jnp.float32)
    if vae is not None:
        constants["vae"] = placed(abstract_params(vae))

    given = (task.prepare, task.loss, optimizer)
    lower = functools.partial(_lower_step, given, settings, state, constants, batch)
    return Program(
        part,
        "step",
        lower,
        (state.trained, state.frozen, constants.get("vae")),
        state.optimizer,
        repeats=settings.accumulate,
    )


def _lower_step(
    given: tuple[Any, Any, Any], settings: ConfigDict, state: Any, constants: Any, batch: Any
) -> jax.stages.Lowered:
    """Traces `train_step`, given what prepares a batch, its loss and the optimizer."""

    def step(*arguments: Any) -> Any:
        # The key is made inside: there is no device for an array of its own.
        key = jax.random.key(settings.seed)
        return train_step(*given, settings.accumulate, key, *arguments)

    placement = (shardings(state), None)
    return jax.jit(step, donate_argnums=0, out_shardings=placement).lower(state, constants, batch)


def customization_program(config: ConfigDict) -> Program:
    """One step of fine-tuning the keyframes on a clip; under a mesh."""
    settings, section = config.customize, config.keyframes
    unet = UNet(build(UNetConfig, section.unet, "keyframes.unet"), compute_dtype(settings))
    tuning = customize.make_tuning(settings, unet, solver_config(section.solver))

    def start(params: Any) -> Any:
        return init_state(tuning.optimizer, *customize.first_trained(params, settings))

    state = placed(jax.eval_shape(start, customize.kept_params(unet, settings)))
    tokens, width = text_size(config, "keyframes")
    size = (settings.batch_size, section.frames, section.height, section.width, 3)
    batch = {
        "video": clips(size, jnp.float32),
        "text": clips((settings.batch_size, tokens, width), jnp.float32),
    }
    constants = {"empty": whole((tokens, width), jnp.float32)}
    lower = functools.partial(_lower_step, tuning, settings, state, constants, batch)
    parameters = (state.trained, state.frozen)
    repeats = settings.accumulate
    return Program("customize", "step", lower, parameters, state.optimizer, repeats)


def sampling_programs(config: ConfigDict, stage: str, parts: int) -> Iterator[Program]:
    """What sampling a stage compiles; under a mesh.

    Args:
      config: as in `configs/show1.py`.
      stage: "t5", "clip", or one of `STAGES`.
      parts: into how many the mesh splits a batch.
    """
    dtype = mesh.compute_dtype(config.dtype)
    batch = rounded_up(config.batch_size, parts)
    if stage in ("t5", "clip"):
        yield _encoder_program(config, stage, batch, dtype)
        return
    section = config[stage]
    unet = UNet(build(UNetConfig, section.unet, f"{stage}.unet"), dtype)
    solver = make_solver(solver_config(section.solver), section.steps)
    denoiser = Denoiser(unet, solver, section.get("dropout", False), guided=section.guidance > 1)
    params = placed(sampling_params(unet, dtype))
    vae, vae_params = None, None
    if stage == "translation":
        vae = VAE(build(VAEConfig, section.vae, "translation.vae"), dtype)
        vae_params = placed(sampling_params(vae, dtype))
    size = sample_size(config, stage, batch, vae.config if vae else None)
    rows, frames, height, width, channels = size
    sample = clips((rows, frames, height, width, channels), jnp.float32)
    condition = unet.config.in_channels - channels
    tokens, text_width = text_size(config, stage)
    conditions = Conditions(
        clips((2, rows, tokens, text_width), jnp.float32, axis=1),
        whole((), jnp.float32),
        clips((rows,), jax.eval_shape(lambda: jax.random.key(0)).dtype),
        clips((rows, frames, height, width, condition), jnp.float32) if condition else None,
        clips((rows,), jnp.int32) if unet.config.noise_level else None,
    )
    state = jax.tree.map(
        lambda leaf: clips(leaf.shape, leaf.dtype) if leaf.ndim else whole((), leaf.dtype),
        jax.eval_shape(solver.init, sample),
    )
    step = whole((), jnp.int32)
    lower = functools.partial(
        sampling.advance.lower, denoiser, params, state, conditions, step, step
    )
    yield Program(stage, "denoise", lower, params, beside=vae_params)
    if vae is not None:
        at_once = section.vae_frames
        video = clips((rows, frames, section.height, section.width, 3), jnp.float32)
        repeats = chunks(rows, frames, at_once)
        for name, function, given in (
            ("encode", translation.encode, video),
            ("decode", translation.decode, sample),
        ):
            lower = functools.partial(function.lower, vae, vae_params, given, at_once)
            yield Program(stage, name, lower, vae_params, repeats=repeats, beside=params)


def chunks(clips: int, frames: int, at_once: int) -> float:
    """How much of the autoencoder's work there is for what is counted: one chunk, and the rest."""
    own = math.ceil(frames / jax.sharding.get_abstract_mesh().shape["frames"])
    chunk = translation.chunk(clips, at_once)
    return own / (chunk * (own >= chunk) + own % chunk)


def _encoder_program(config: ConfigDict, name: str, batch: int, dtype: Any) -> Program:
    if name not in config.text:
        raise InputError(f"the config does not say how large {name} is (config.text.{name})")
    module = (
        T5Encoder(T5Config(**config.text.t5), dtype)
        if name == "t5"
        else CLIPText(CLIPTextConfig(**config.text.clip), dtype)
    )
    tokens = config.text.t5_tokens if name == "t5" else LENGTH
    ids, params = clips((batch, tokens), jnp.int32), placed(sampling_params(module, dtype))
    mask = ids if name == "t5" else None
    lower = functools.partial(encoding.encode.lower, module, params, ids, mask)
    return Program(name, "encode", lower, params)


def text_size(config: ConfigDict, stage: str) -> tuple[int, int]:
    """Tokens and width of the text embeddings that a stage, or a part, is given."""
    tokens = LENGTH if stage == "translation" else config.text.t5_tokens
    return tokens, config[stage].unet.text_dim


def clips(shape: tuple[int, ...], dtype: Any, axis: int = 0) -> Any:
    """An array whose clips, along `axis`, are spread over the mesh."""
    return _array(shape, dtype, PartitionSpec(*(None,) * axis, BATCH))


def whole(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array that every device has."""
    return _array(shape, dtype, PartitionSpec())


def _array(shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> Any:
    sharding = NamedSharding(jax.sharding.get_mesh(), spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
