"""What all stages share: random draws for each clip, and the guided denoising loop.

A stage prepares a noisy start and `Conditions` from its inputs; `advance` then
executes any range of its solver's steps in one compiled loop. The bounds of
the range, the guidance, the seeds and the noise levels are values, so changing
them never compiles again. (The loop is called in a few segments instead of
once so that progress can be shown: a callback from inside it would keep the
program out of JAX's persistent compilation cache.)
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from show1_jax.diffusion.guidance import guide
from show1_jax.diffusion.solvers import Solver, SolverState
from show1_jax.models.unet import UNet
from show1_jax.parallel.frames import over_frames
from show1_jax.parallel.sharding import over_clips


class Progress(Protocol):
    """What is called to tell how far a piece of work is."""

    def __call__(self, done: int, steps: int, doing: str = "", /) -> None:
        """Told the number of steps done and of all steps, and what is done now other than them."""


START, AUGMENTATION, POSTERIOR, STEPS = range(4)


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
class Denoiser:
    """The static half of a stage: its network, its solver, and how the network is called.

    Attributes:
      unet: the network.
      solver: the solver.
      dropout: whether dropout stays on.
      guided: False for guidance scales of 1 and below, which need no prediction
        for the negative prompt: half the work.
    """

    unet: UNet
    solver: Solver
    dropout: bool = False
    guided: bool = True


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
    """What the denoiser is told about each clip, besides the time.

    Attributes:
      text: `(2, batch, tokens, width)`, the negative prompts' embeddings first.
      guidance: the guidance scale, a scalar; 1 and below mean none.
      keys: `(batch,)` random keys.
      frames: `(batch, frames, height, width, channels)` concatenated to the
        noisy sample; None for nothing.
      noise_level: `(batch,)` timesteps to which `frames` was noised; None for
        networks that are not told.
    """

    text: jax.Array
    guidance: jax.Array
    keys: jax.Array
    frames: jax.Array | None = None
    noise_level: jax.Array | None = None


def predict(
    denoiser: Denoiser, params: Any, sample: jax.Array, step: jax.Array, conditions: Conditions
) -> jax.Array:
    """The guided prediction for a noisy sample at one of the solver's steps.

    Args:
      denoiser: network and solver.
      params: the network's parameters.
      sample: `(batch, frames, height, width, channels)`.
      step: which of the solver's timesteps, traced.
      conditions: what the network is told.

    Returns:
      `(batch, frames, height, width, out_channels)` fp32; of its channels, those
      beyond the sample's are the learned variance, which is not guided.
    """
    batch, channels = sample.shape[0], sample.shape[-1]
    if conditions.frames is not None:
        sample = jnp.concatenate([sample, conditions.frames], axis=-1)
    timestep = jnp.asarray(denoiser.solver.timesteps)[step]

    # The negative prompts' half comes first, the other is always the last.
    halves = (0, 1) if denoiser.guided else (1,)

    def copies(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x] * len(halves))

    text = jnp.concatenate([conditions.text[half] for half in halves])
    level = None if conditions.noise_level is None else copies(conditions.noise_level)
    inputs = (copies(sample), copies(jnp.full(batch, timestep)), text, level)
    variables = {"params": params}
    if denoiser.dropout:
        keys = jnp.concatenate([_step_keys(conditions.keys, step, half) for half in halves])
        output = apply_with_dropout(denoiser.unet, variables, keys, *inputs)
    else:
        output = apply(denoiser.unet, variables, *inputs)
    if not denoiser.guided:
        return output
    negative, positive = jnp.split(output, 2)
    return guide(negative, positive, jnp.maximum(conditions.guidance, 1.0), channels)


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
    denoiser: Denoiser,
    params: Any,
    state: SolverState,
    conditions: Conditions,
    begin: jax.Array | int,
    end: jax.Array | int,
    step_noise: Callable[[jax.Array], jax.Array] | None,
) -> SolverState:
    """Executes the solver's steps `begin` to `end` - 1.

    Args:
      denoiser: network and solver.
      params: the network's parameters.
      state: where to go on from.
      conditions: what the network is told.
      begin: first step, traced.
      end: one past the last step, traced.
      step_noise: gives the noise of a step, for solvers that need it.
    """
    solver = denoiser.solver

    def body(step: jax.Array, state: SolverState) -> SolverState:
        output = predict(denoiser, params, state.sample, step, conditions)
        noise = step_noise(step) if step_noise is not None else None
        return solver.step(state, step, output, noise)

    return jax.lax.fori_loop(begin, end, body, state)


@functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
def advance(
    denoiser: Denoiser,
    params: Any,
    state: SolverState,
    conditions: Conditions,
    begin: jax.Array,
    end: jax.Array,
) -> SolverState:
    """`denoise`, compiled, with the noise of each step drawn from the clips' keys."""
    step_noise = None
    if denoiser.solver.needs_noise:
        shape = state.sample.shape[1:]

        def step_noise(step: jax.Array) -> jax.Array:
            return draw(conditions.keys, STEPS + step, shape)

    return denoise(denoiser, params, state, conditions, begin, end, step_noise)


def run(
    denoiser: Denoiser,
    params: Any,
    start: jax.Array,
    conditions: Conditions,
    progress: Progress | None = None,
    first_step: int = 0,
) -> jax.Array:
    """Denoises `start` to the end of the schedule, in about twenty segments.

    Args:
      denoiser: network and solver.
      params: the network's parameters, or `ByTimestep`.
      start: `(batch, frames, height, width, channels)`, noised to the first step.
      conditions: what the network is told.
      progress: told before it is compiled, before the first segment, and after each.
      first_step: the first step to execute.

    Returns:
      The sample, fp32, in the shape of `start`.
    """
    steps = denoiser.solver.num_steps
    # A copy, since each segment takes over the memory of the state it is given.
    state = denoiser.solver.init(jnp.array(start))
    segment = max(1, (steps - first_step) // 20)
    timesteps, begin = denoiser.solver.timesteps.tolist(), first_step
    if progress is not None:
        jax.block_until_ready(state)
        progress(0, steps - first_step, "compiling")
        # No step, so that it is compiled and nothing else.
        own, none = params_at(params, timesteps[begin]), jnp.int32(begin)
        state = jax.block_until_ready(advance(denoiser, own, state, conditions, none, none))
        progress(0, steps - first_step)
    while begin < steps:
        own, end = params_at(params, timesteps[begin]), begin + 1
        while end < min(begin + segment, steps) and params_at(params, timesteps[end]) is own:
            end += 1
        state = advance(denoiser, own, state, conditions, jnp.int32(begin), jnp.int32(end))
        begin = end
        if progress is not None:
            jax.block_until_ready(state)
            progress(end - first_step, steps - first_step)
    return state.sample


def in_parts(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """What to tell of one of several equal parts so that `progress` hears of the whole."""
    if progress is None:
        return None

    def whole(done: int, steps: int, doing: str = "", /) -> None:
        progress(part * steps + done, parts * steps, doing)

    return whole
