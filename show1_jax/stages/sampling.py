"""What all stages share: random draws for each clip, and the guided denoising loop.

A stage prepares a noisy start and `Conditions` from its inputs. `run` then denoises it, and
`advance` executes any range of the solver's steps in one compiled loop. The bounds of the range,
the guidance, the seeds and the noise levels are values, so changing them never compiles again.
(The loop is called in a few segments instead of once so that progress can be shown: a callback
from inside it would keep the program out of JAX's persistent compilation cache.)
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from show1_jax.diffusion.guidance import guide
from show1_jax.diffusion.solvers import Solver, SolverState
from show1_jax.models.unet import UNet
from show1_jax.parallel.frames import over_frames
from show1_jax.parallel.mesh import abstract_mesh, current_platform
from show1_jax.parallel.sharding import in_pieces, over_clips


class Progress(Protocol):
    """A callback that shows how far a piece of work is."""

    def __call__(self, done: int, steps: int, doing: str = "", /) -> None:
        """Receives the number of steps done, the number of all steps, and what else is done now."""


START, AUGMENTATION, POSTERIOR, STEPS = range(4)

# Of the first level's activations at once. A GPU has enough to do with 60 MB; a TPU keeps nearly
# all activations in its vector memory then.
MAX_ELEMENTS = {"gpu": 30_000_000, "tpu": 14_000_000}


@functools.partial(jax.jit, static_argnums=1)
def clip_keys(seeds: jax.Array, stage: str) -> jax.Array:
    """One random key for each clip: from its seed and the stage, not from its place in the batch.

    Args:
      seeds: `(batch,)` integers.
      stage: the stage's name.

    Returns:
      `(batch,)` keys.
    """
    number = zlib.crc32(stage.encode())
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))(seeds)


@functools.partial(jax.jit, static_argnums=2)
def draw(keys: jax.Array, purpose: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise, `(batch,)` keys to `(batch, *shape)` fp32, each clip from its key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, purpose), shape))(keys)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The static half of sampling: a network, a solver, and how the network is called.

    Attributes:
      unet: the network.
      solver: the solver.
      dropout: whether dropout stays on.
      guided: False for guidance scales of 1 and below, which need no prediction
        for the negative prompt: half the work.
      low_memory: whether the network is given one row of the batch at a time, for small devices.
    """

    unet: UNet
    solver: Solver
    dropout: bool = False
    guided: bool = True
    low_memory: bool = False

    def rows_at_once(self, sample: jax.Array) -> int:
        """How many rows of a batch a device gives to the network at a time.

        Activations are as large as the positions of the rows times the network's channels. With
        so many that a device has enough to do, more rows at once would only take more memory.

        Reads the mesh set by `jax.set_mesh`.

        Args:
          sample: `(batch, frames, height, width, channels)`.
        """
        if self.low_memory:
            return 1
        limit = MAX_ELEMENTS.get(current_platform()[0])
        if limit is None:
            return len(sample) * 2  # both halves
        mesh = abstract_mesh()
        parts = 1 if mesh is None else mesh.shape["frames"]
        row = math.prod(sample.shape[1:-1]) * self.unet.config.channels[0]
        return max(1, limit * parts // row)


@dataclasses.dataclass(frozen=True)
class Call:
    """One batch of clips to sample: everything but what the stage starts from.

    Attributes:
      sampler: network and solver.
      params: by network name, their parameters: "unet" (a tree, or `ByTimestep`), perhaps "vae".
      text: `(2, batch, tokens, width)` embeddings, the negative prompts' first.
      seeds: `(batch,)` integers.
      guidance: the guidance scale, a scalar; 1 and below mean none.
      progress: is told how many steps are done.
      watch: is shown the clean samples that the network predicts, now and then:
        `(rows, frames, height, width, channels)`.
    """

    sampler: Sampler
    params: Mapping[str, Any]
    text: jax.Array
    seeds: jax.Array
    guidance: jax.Array
    progress: Progress | None = None
    watch: Callable[[jax.Array], None] | None = None

    def keys(self, stage: str) -> jax.Array:
        """The clips' random keys `(batch,)`; see `clip_keys`."""
        return clip_keys(self.seeds, stage)

    def part(self, index: int, count: int) -> "Call":
        """The call for one of several equal parts of the work, with its share of the progress."""
        return dataclasses.replace(self, progress=in_parts(self.progress, index, count))


@dataclasses.dataclass(frozen=True)
class ByTimestep:
    """A network's parameters where they are not the same at all timesteps.

    Attributes:
      parts: the first timestep of each and its parameters, which hold up to the
        next one's first; ascending, from 0 on. What they share is in memory once.
    """

    parts: tuple[tuple[int, Any], ...]


def params_at(params: Any, timestep: int) -> Any:
    """The parameters at a timestep, of a tree for all of them or of `ByTimestep`."""
    if not isinstance(params, ByTimestep):
        return params
    return [own for first, own in params.parts if first <= timestep][-1]


class Conditions(NamedTuple):
    """What the network is told about each clip, besides the time.

    Attributes:
      text: `(2, batch, tokens, width)`, the negative prompts' embeddings first.
      frames: `(batch, frames, height, width, channels)`, concatenated to the noisy sample; None
        for nothing.
      noise_level: `(batch,)` timesteps to which `frames` was noised; None for networks that are
        not told.
    """

    text: jax.Array
    frames: jax.Array | None = None
    noise_level: jax.Array | None = None


class Steering(NamedTuple):
    """What changes the predictions, besides the conditions.

    Attributes:
      guidance: the guidance scale, a scalar.
      keys: `(batch,)` random keys.
    """

    guidance: jax.Array
    keys: jax.Array


def predict(
    sampler: Sampler,
    params: Any,
    sample: jax.Array,
    step: jax.Array,
    conditions: Conditions,
    steering: Steering,
) -> jax.Array:
    """The guided prediction for a noisy sample at one of the solver's steps.

    Args:
      sampler: network and solver.
      params: the network's parameters.
      sample: `(batch, frames, height, width, channels)`.
      step: which of the solver's timesteps, traced.
      conditions: what the network is told.
      steering: guidance scale and random keys.

    Returns:
      `(batch, frames, height, width, out_channels)` fp32. The channels beyond the sample's are
      the learned variance, which is not guided.
    """
    batch, channels = sample.shape[0], sample.shape[-1]
    if conditions.frames is not None:
        sample = jnp.concatenate([sample, conditions.frames], axis=-1)
    timestep = jnp.asarray(sampler.solver.timesteps)[step]

    # The negative prompts' half comes first, the other is always the last.
    halves = (0, 1) if sampler.guided else (1,)

    def copies(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x] * len(halves))

    text = jnp.concatenate([conditions.text[half] for half in halves])
    level = None if conditions.noise_level is None else copies(conditions.noise_level)
    inputs = (copies(sample), copies(jnp.full(batch, timestep)), text, level)
    variables = {"params": params}
    if sampler.dropout:
        keys = jnp.concatenate([_step_keys(steering.keys, step, half) for half in halves])
        network = functools.partial(apply_with_dropout, sampler.unet, variables)
        output = in_pieces(network, sampler.rows_at_once(sample), keys, *inputs)
    else:
        network = functools.partial(apply, sampler.unet, variables)
        output = in_pieces(network, sampler.rows_at_once(sample), *inputs)
    if not sampler.guided:
        return output
    negative, positive = jnp.split(output, 2)
    return guide(negative, positive, jnp.maximum(steering.guidance, 1.0), channels)


def apply(unet: UNet, variables: Any, sample: jax.Array, *inputs: jax.Array | None) -> jax.Array:
    """Runs the network, on meshes with an axis `frames` with each clip spread over it."""

    def part(sample: jax.Array, variables: Any, *inputs: jax.Array | None) -> jax.Array:
        return jnp.asarray(unet.apply(variables, sample, *inputs))

    return over_frames(part, sample, variables, *inputs)


def apply_with_dropout(
    unet: UNet, variables: Any, keys: jax.Array, sample: jax.Array, *inputs: jax.Array | None
) -> jax.Array:
    """Runs each clip alone, so that its dropout does not depend on the batch it is in."""

    def part(
        sample: jax.Array, variables: Any, keys: jax.Array, *inputs: jax.Array | None
    ) -> jax.Array:
        def one(key: jax.Array, *inputs: jax.Array | None) -> Any:
            batch_of_one = jax.tree.map(lambda x: x[None], inputs)
            return unet.apply(variables, *batch_of_one, train=True, rngs={"dropout": key})[0]

        return over_clips(one, len(keys))(keys, sample, *inputs)

    return over_frames(part, sample, variables, keys, *inputs)


def _step_keys(keys: jax.Array, step: jax.Array, half: int) -> jax.Array:
    fold = jax.random.fold_in
    return jax.vmap(lambda key: fold(fold(key, STEPS + step), half))(keys)


def denoise(
    sampler: Sampler,
    params: Any,
    state: SolverState,
    conditions: Conditions,
    steering: Steering,
    steps: tuple[jax.Array | int, jax.Array | int],
    *,
    step_noise: Callable[[jax.Array], jax.Array] | None,
) -> SolverState:
    """Executes some of the solver's steps.

    Args:
      sampler: network and solver.
      params: the network's parameters.
      state: where to go on from.
      conditions: what the network is told.
      steering: guidance scale and random keys.
      steps: the first step and one past the last, traced.
      step_noise: gives the noise of a step, for solvers that need it.
    """
    solver = sampler.solver

    def body(step: jax.Array, state: SolverState) -> SolverState:
        output = predict(sampler, params, state.sample, step, conditions, steering)
        noise = step_noise(step) if step_noise is not None else None
        return solver.step(state, step, output, noise)

    return jax.lax.fori_loop(*steps, body, state)


@functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
def advance(
    sampler: Sampler,
    params: Any,
    state: SolverState,
    conditions: Conditions,
    steering: Steering,
    steps: tuple[jax.Array, jax.Array],
) -> SolverState:
    """`denoise`, compiled, with the noise of each step drawn from the clips' keys."""
    step_noise = None
    if sampler.solver.needs_noise:
        shape = state.sample.shape[1:]

        def step_noise(step: jax.Array) -> jax.Array:
            return draw(steering.keys, STEPS + step, shape)

    return denoise(sampler, params, state, conditions, steering, steps, step_noise=step_noise)


def run(
    call: Call,
    start: jax.Array,
    conditions: Conditions,
    keys: jax.Array,
    first_step: int = 0,
) -> jax.Array:
    """Denoises `start` to the end of the schedule, in about twenty segments.

    The call's progress is told before the program is compiled, before the first segment, and after
    each; predictions are shown after each.

    Args:
      call: network, solver, parameters, guidance and progress.
      start: `(batch, frames, height, width, channels)`, noised to the first step.
      conditions: what the network is told.
      keys: `(batch,)` random keys.
      first_step: the first step to execute.

    Returns:
      The sample, fp32, in the shape of `start`.
    """
    sampler, params, progress = call.sampler, call.params["unet"], call.progress
    steering = Steering(call.guidance, keys)
    count, timesteps = sampler.solver.num_steps, sampler.solver.timesteps.tolist()
    # A copy, since each segment takes over the memory of the state it is given.
    state = sampler.solver.init(jnp.array(start))
    segment = max(1, (count - first_step) // 20)
    begin = first_step
    if progress is not None:
        jax.block_until_ready(state)
        progress(0, count - first_step, "compiling")
        # No step, so that the program is compiled and nothing else happens.
        own, none = params_at(params, timesteps[begin]), jnp.int32(begin)
        state = advance(sampler, own, state, conditions, steering, (none, none))
        jax.block_until_ready(state)
        progress(0, count - first_step)
    while begin < count:
        own, end = params_at(params, timesteps[begin]), begin + 1
        while end < min(begin + segment, count) and params_at(params, timesteps[end]) is own:
            end += 1
        steps = (jnp.int32(begin), jnp.int32(end))
        state = advance(sampler, own, state, conditions, steering, steps)
        begin = end
        if progress is not None:
            jax.block_until_ready(state)
            progress(end - first_step, count - first_step)
        if call.watch is not None:
            call.watch(state.clean)
    return state.sample


def in_parts(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """What to tell of one of several equal parts so that `progress` hears of the whole."""
    if progress is None:
        return None

    def whole(done: int, steps: int, doing: str = "", /) -> None:
        progress(part * steps + done, parts * steps, doing)

    return whole
