"""The programs of each stage, to be compiled without parameters or devices."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from show1_jax import stages
from show1_jax.adapters import customize
from show1_jax.aot.prediction import Program, predict, total
from show1_jax.checkpoints.networks import abstract_params, fresh_params
from show1_jax.checkpoints.released import sampling_params
from show1_jax.diffusion.solvers import make_solver
from show1_jax.errors import InputError
from show1_jax.models.clip import CLIPText, CLIPTextConfig
from show1_jax.models.t5 import Block, T5Config, T5Encoder
from show1_jax.parallel import mesh
from show1_jax.parallel.mesh import BATCH, batch_parts, make_mesh, rounded_up
from show1_jax.parallel.sharding import in_kernel_order, piece_count, placed, shardings
from show1_jax.stages import Stage, sampling
from show1_jax.stages.sampling import Conditions, Sampler, Steering
from show1_jax.text import encoding
from show1_jax.text.tokenizers import token_count
from show1_jax.training.optimizer import make_optimizer
from show1_jax.training.placement import part_mesh
from show1_jax.training.settings import check
from show1_jax.training.step import Recipe, init_state, train_step
from show1_jax.training.tasks import compute_dtype, make_task
from show1_jax.training.trainable import split

ENCODERS = ("t5", "clip")
TEXTS = 2  # a prompt and a negative one


def predict_training(config: ConfigDict, name: str, as_json: bool) -> None:
    """Prints what a training step of a part, or of all, would take on a topology.

    Raises:
      InputError: if the topology or a setting is wrong.
    """
    if "customize" in config:

        def customization(devices: Sequence[jax.Device]) -> Iterator[tuple[Mesh, Program]]:
            own = make_mesh(config.mesh, devices)
            check(config.customize, "customize", batch_parts(own))
            with jax.set_mesh(own):
                program = customization_program(config)
            yield own, program

        predict(customization, name, as_json)
        return
    parts = [stages.part(config.stage)] if config.stage else list(stages.parts().values())

    def programs(devices: Sequence[jax.Device]) -> Iterator[tuple[Mesh, Program]]:
        meshes = [part_mesh(config, part, devices) for part in parts]
        for part, own in zip(parts, meshes, strict=True):
            with jax.set_mesh(own):
                program = training_program(config, part.name)
            yield own, program

    predict(programs, name, as_json)


def predict_sampling(
    config: ConfigDict, chosen: Sequence[str] | None, name: str, as_json: bool
) -> None:
    """Prints what a step of sampling's stages would take on a topology.

    Args:
      config: as in `configs/show1.py`.
      chosen: text encoders and stages; None for all whose sizes the config has.
      name: of the topology.
      as_json: see `predict`.

    Raises:
      InputError: if the topology, a stage or a setting is wrong.
    """
    known = [*ENCODERS, *stages.names()]
    wanted = chosen or [name for name in known if name not in ENCODERS or name in config.text]
    for stage in wanted:
        if stage not in known:
            raise InputError(f"there is no stage {stage!r}: take {', '.join(known)}")
    if config.batch_size < 1:
        raise InputError(f"batch_size is {config.batch_size}, but must be at least 1")

    def programs(devices: Sequence[jax.Device]) -> Iterator[tuple[Mesh, Program]]:
        own = make_mesh(config.mesh, devices)
        for stage in wanted:
            with jax.set_mesh(own):
                made = list(sampling_programs(config, stage, batch_parts(own)))
            yield from ((own, program) for program in made)

    reports = predict(programs, name, as_json)
    if not as_json:
        print(total(reports))


def training_program(config: ConfigDict, name: str) -> Program:
    """One step of a part's training; under a mesh.

    Args:
      config: as in `configs/show1.py`.
      name: of the part; see `stages.parts`.
    """
    settings, part = config.train[name], stages.part(name).from_config(config)
    frozen: dict[str, Any] = {}
    encoder = None
    if isinstance(part, Stage):
        frozen = part.other_modules(compute_dtype(settings))
        part = part.with_networks(frozen)
        if settings.text == "step":
            encoder = sized_encoder(config, part.encoder, compute_dtype(settings))
    task, optimizer = make_task(part, settings, encoder), make_optimizer(settings)
    seed = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)

    def start(key: jax.Array) -> Any:
        params = fresh_params(task.module, key)
        return init_state(optimizer, *split(params, settings.trainable))

    state, spec = placed(jax.eval_shape(start, seed)), task.spec
    size = (settings.batch_size, spec.frames, spec.height, spec.width, 3)
    batch = {"video": clips(size, jnp.uint8)}
    constants = {name: placed(abstract_params(module)) for name, module in frozen.items()}
    if isinstance(part, Stage):
        tokens, width = text_size(config, part)
        shape, dtype = ((2, tokens), jnp.int32) if encoder else ((tokens, width), jnp.float16)
        batch["text"] = clips((settings.batch_size, *shape), dtype)
        constants["empty"] = whole(shape, dtype)
    if encoder is not None:
        constants["text_encoder"] = placed(sampling_params(encoder, encoder.dtype))

    recipe = Recipe(task.prepare, task.loss, optimizer, settings.accumulate)
    lower = functools.partial(_lower_step, recipe, settings.seed, state, constants, batch)
    others = [constants[name] for name in constants if name != "empty"]
    return Program(
        name,
        "step",
        lower,
        (state.trained, state.frozen, *others),
        state.optimizer,
        repeats=settings.accumulate,
        quick=True,
    )


def _lower_step(
    recipe: Recipe, seed: int, state: Any, constants: Any, batch: Any
) -> jax.stages.Lowered:
    """Traces `train_step`."""

    def step(*arguments: Any) -> Any:
        # The key is made inside: there is no device for an array of its own.
        return train_step(recipe, jax.random.key(seed), *arguments)

    placement = (shardings(state), None)
    return jax.jit(step, donate_argnums=0, out_shardings=placement).lower(state, constants, batch)


def customization_program(config: ConfigDict) -> Program:
    """One step of fine-tuning the keyframes on a clip; under a mesh."""
    settings, stage = config.customize, stages.STAGES[0].from_config(config)
    unet = stage.module(compute_dtype(settings))
    recipe = customize.make_recipe(settings, unet, stage.solver)

    def start(params: Any) -> Any:
        return init_state(recipe.optimizer, *customize.first_trained(params, settings))

    state = placed(jax.eval_shape(start, customize.kept_params(unet, settings)))
    tokens, width = text_size(config, stage)
    size = (settings.batch_size, *stage.shape)
    batch = {
        "video": clips(size, jnp.float32),
        "text": clips((settings.batch_size, tokens, width), jnp.float32),
    }
    constants = {"empty": whole((tokens, width), jnp.float32)}
    lower = functools.partial(_lower_step, recipe, settings.seed, state, constants, batch)
    parameters = (state.trained, state.frozen)
    repeats = settings.accumulate
    return Program("customize", "step", lower, parameters, state.optimizer, repeats)


def sampling_programs(config: ConfigDict, name: str, parts: int) -> Iterator[Program]:
    """What sampling a stage compiles; under a mesh.

    Args:
      config: as in `configs/show1.py`.
      name: of a text encoder or a stage.
      parts: into how many the mesh splits a batch.
    """
    dtype = mesh.sampling_dtype(config.dtype)
    batch = rounded_up(config.batch_size, parts)
    if name in ENCODERS:
        yield from _encoder_programs(config, name, batch, dtype)
        return
    stage = stages.by_name(name).from_config(config)
    others = stage.other_modules(dtype)
    stage = stage.with_networks(others)
    unet, solver = stage.module(dtype), make_solver(stage.solver, stage.steps)
    guided = stage.guidance > 1
    # No chip that programs are compiled for is small.
    low_memory = mesh.low_memory(config.memory, mesh.SMALL_MEMORY)
    sampler = Sampler(unet, solver, stage.dropout, guided, low_memory)
    params = in_kernel_order(placed(sampling_params(unet, dtype)))
    other_params = {
        key: in_kernel_order(placed(sampling_params(other, dtype))) for key, other in others.items()
    }
    rows, *shape = stage.batch_shape
    rows, channels = batch * rows, shape[-1]
    sample = clips((rows, *shape), jnp.float32)
    condition = unet.config.in_channels - channels
    tokens, text_width = text_size(config, stage)
    conditions = Conditions(
        clips((2, rows, tokens, text_width), jnp.float32, axis=1),
        clips((rows, *shape[:-1], condition), jnp.float32) if condition else None,
        clips((rows,), jnp.int32) if unet.config.noise_level else None,
    )
    keys = clips((rows,), jax.eval_shape(lambda: jax.random.key(0)).dtype)
    state = jax.tree.map(
        lambda leaf: clips(leaf.shape, leaf.dtype) if leaf.ndim else whole((), leaf.dtype),
        jax.eval_shape(solver.init, sample),
    )
    steering, step = Steering(whole((), jnp.float32), keys), whole((), jnp.int32)
    given = (sampler, params, state, conditions, steering, (step, step))
    lower = functools.partial(sampling.advance.lower, *given)
    repeats = piece_count((1 + guided) * rows, sampler.rows_at_once(sample))
    others_beside = list(other_params.values()) or None
    steps = stage.step_count(solver)
    yield Program(name, "denoise", lower, params, repeats=repeats, beside=others_beside, runs=steps)
    frame_parts = jax.sharding.get_abstract_mesh().shape["frames"]
    for extra in stage.extras(batch, frame_parts):
        own = other_params[extra.network]
        array = clips(extra.shape, jnp.float32)
        function: Any = extra.function
        lower = functools.partial(function.lower, others[extra.network], own, array, extra.static)
        yield Program(name, extra.name, lower, own, repeats=extra.repeats, beside=params)


def sized_encoder(config: ConfigDict, name: str, dtype: Any) -> T5Encoder | CLIPText:
    """A text encoder, as large as the config says.

    Args:
      config: as in `configs/show1.py`.
      name: of the encoder, "t5" or "clip".
      dtype: what the other networks compute in.

    Raises:
      InputError: if the config does not say it.
    """
    if name not in config.text:
        raise InputError(f"the config does not say how large {name} is (config.text.{name})")
    if name == "clip":
        return CLIPText(CLIPTextConfig(**config.text.clip), dtype)
    return T5Encoder(T5Config(**config.text.t5), encoding.t5_dtype(dtype))


def _encoder_programs(config: ConfigDict, name: str, batch: int, dtype: Any) -> Iterator[Program]:
    encoder = sized_encoder(config, name, dtype)
    tokens = token_count(name, config.text.t5_tokens)
    ids = clips((batch, tokens), jnp.int32)
    params = placed(sampling_params(encoder, encoder.dtype))
    if isinstance(encoder, CLIPText):
        lower = functools.partial(encoding.encode.lower, encoder, params, ids, None)
        yield Program(name, "encode", lower, params, runs=TEXTS)
        return
    t5 = encoder
    first, second = ({key: params[key] for key in [f"block_{i}"] if key in params} for i in (0, 1))
    tables = {key: params[key] for key in ("token_embedding", "relative_bias")}
    state = jax.eval_shape(functools.partial(encoding.embed_tokens, t5), tables, ids)
    state = clips(state.shape, state.dtype)
    bias = jax.eval_shape(lambda tables: encoding.position_bias(t5, tables, tokens), tables)
    arguments = (first["block_0"], state, whole(bias.shape, bias.dtype), ids)
    layer = functools.partial(encoding.run_layer.lower, Block(t5.config, t5.dtype), *arguments)
    # The next layer is read meanwhile.
    layers = t5.config.num_layers
    yield Program(name, "layers", layer, first, repeats=layers, beside=second, runs=TEXTS)
    embed = functools.partial(encoding.embed_tokens.lower, t5, tables, ids)
    yield Program(name, "embed", embed, tables, beside=first, runs=TEXTS)


def text_size(config: ConfigDict, stage: Stage) -> tuple[int, int]:
    """Tokens and width of the text embeddings that a stage is given."""
    return token_count(stage.encoder, config.text.t5_tokens), stage.unet.text_dim


def clips(shape: tuple[int, ...], dtype: Any, axis: int = 0) -> Any:
    """An array whose clips, along `axis`, are spread over the mesh."""
    return _array(shape, dtype, PartitionSpec(*(None,) * axis, BATCH))


def whole(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array that every device has."""
    return _array(shape, dtype, PartitionSpec())


def _array(shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> Any:
    sharding = NamedSharding(jax.sharding.get_mesh(), spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
