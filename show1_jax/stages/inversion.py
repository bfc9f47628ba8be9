"""DDIM inversion: the noise from which a stage's denoiser makes a given clip (arXiv 2010.02502).

The deterministic solver is run backwards, from the clip to noise (section 4.3).
Each backward step takes the noise that makes the forward step land where it
came from, which is found by repetition (fixed-point iteration, as in Pan et
al. 2023, arXiv 2309.04907): without it, what the network predicts at the wrong end
of a step is an error that adds up.
"""

import dataclasses
import functools
import io
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path

from show1_jax import stages
from show1_jax.diffusion.schedule import to_clean, to_epsilon
from show1_jax.diffusion.solvers import SolverConfig, make_solver
from show1_jax.diffusion.updates import ddim
from show1_jax.errors import ARRAY_DAMAGE, InputError
from show1_jax.media import write_bytes
from show1_jax.parallel.sharding import put_batch
from show1_jax.stages.sampling import (
    Call,
    Conditions,
    Sampler,
    Steering,
    params_at,
    predict,
    run,
)
from show1_jax.stages.stage import Stage

REPEATS = 3  # of the prediction in each step


def inverter(sampler: Sampler, steps: int) -> Sampler:
    """The sampler with the deterministic solver that can be run backwards.

    Without thresholds, which cannot be undone, and without guidance, under
    which a clip has no noise that makes it.
    """
    own = sampler.solver.config
    solver = make_solver(SolverConfig("ddim", own.schedule, own.prediction), steps)
    return dataclasses.replace(sampler, solver=solver, guided=False, dropout=False)


def from_noise(sampler: Sampler, steps: int) -> Sampler:
    """The sampler that starts from the noise of a clip, the way that it came.

    Where it is guided it leads elsewhere, and so needs its thresholds again.
    """
    back = inverter(sampler, steps)
    if not sampler.guided:
        return back
    own = sampler.solver.config
    limits = {name: getattr(own, name) for name in ("clip", "threshold", "threshold_max")}
    config = dataclasses.replace(back.solver.config, **limits)
    return dataclasses.replace(back, solver=make_solver(config, steps), guided=True)


@functools.partial(jax.jit, static_argnums=0)
def _back(
    sampler: Sampler,
    params: Any,
    sample: jax.Array,
    step: jax.Array,
    conditions: Conditions,
    steering: Steering,
) -> jax.Array:
    """The sample before one of the solver's steps, from that after it."""
    solver = sampler.solver
    now, then = (
        jnp.asarray(solver.coefficients[name])[step] for name in ("alpha_bar", "next_alpha_bar")
    )

    def forward(sample: float, output: float) -> jax.Array:
        kind = solver.config.prediction
        clean, epsilon = (to(output, sample, now, kind) for to in (to_clean, to_epsilon))
        return ddim(clean, epsilon, then)

    # The forward step is linear in the sample and in the output, which alone is unknown.
    of_sample, of_output = forward(1.0, 0.0), forward(0.0, 1.0)

    def before(_: int, guess: jax.Array) -> jax.Array:
        output = predict(sampler, params, guess, step, conditions, steering)[
            ..., : sample.shape[-1]
        ]
        return (sample - of_output * output) / of_sample

    return jax.lax.fori_loop(0, REPEATS, before, sample)


def invert(
    call: Call,
    clean: jax.Array,
    conditions: Conditions,
    keys: jax.Array,
    first_step: int = 0,
) -> jax.Array:
    """The noise that `run` makes into `clean`, given the same call and conditions.

    Args:
      call: its sampler is from `inverter`.
      clean: `(batch, frames, height, width, channels)`.
      conditions: what the network is told.
      keys: `(batch,)` random keys.
      first_step: the last step to undo.

    Returns:
      Like `clean`, at the noise level of `first_step`.
    """
    solver, steering = call.sampler.solver, Steering(call.guidance, keys)
    steps = solver.num_steps - first_step
    sample = jnp.asarray(clean, jnp.float32)
    if call.progress is not None:
        call.progress(0, steps, "compiling")
    for done, step in enumerate(reversed(range(first_step, steps + first_step)), start=1):
        own = params_at(call.params["unet"], int(solver.timesteps[step]))
        sample = _back(call.sampler, own, sample, jnp.int32(step), conditions, steering)
        if call.progress is not None:
            call.progress(done, steps)
    return sample


class Noise(NamedTuple):
    """What a stage's denoiser makes into a clip: all that it is given but the text.

    Attributes:
      stage: whose denoiser.
      noise: `(pieces, frames, height, width, channels)`: all gaps or windows, or one.
      steps: of the whole schedule.
      strength: the share of them that is taken; 1 but for translation.
      frames: `(pieces, frames, height, width, channels)`, its condition, or None.
      noise_level: timestep to which that was noised, or None.
    """

    stage: str
    noise: np.ndarray
    steps: int
    strength: float = 1.0
    frames: np.ndarray | None = None
    noise_level: int | None = None


def sample(call: Call, start: Noise) -> jax.Array:
    """Makes the same noise into a clip for each prompt; under the mesh set by `jax.set_mesh`.

    Args:
      call: its sampler is from `from_noise` or `inverter`; its seeds decide dropout alone.
      start: the noise.

    Returns:
      `(batch, pieces, frames, height, width, channels)`.
    """
    batch, keys = len(call.seeds), call.keys(start.stage)
    first = int(call.sampler.solver.first_step(start.strength))

    def for_all(piece: np.ndarray) -> jax.Array:
        return put_batch(np.broadcast_to(piece, (batch, *piece.shape)))

    level = None if start.noise_level is None else jnp.full(batch, start.noise_level)
    made = []
    for i, noise in enumerate(start.noise):
        frames = None if start.frames is None else for_all(start.frames[i])
        conditions = Conditions(call.text, frames, level)
        made.append(run(call.part(i, len(start.noise)), for_all(noise), conditions, keys, first))
    return jnp.stack(made, axis=1)


def noise_of(stage: Stage, call: Call, video: jax.Array, steps: int) -> Noise:
    """The noise that a stage's denoiser makes into a clip, piece by piece.

    Args:
      stage: with its networks.
      call: of one clip; its sampler is from `inverter`.
      video: `(frames, height, width, 3)` in [-1, 1].
      steps: of the whole schedule.
    """
    keys = call.keys(stage.name)
    pieces = stage.split(video, keys[0], call.params)
    first = int(call.sampler.solver.first_step(stage.strength))
    found = []
    for i in range(len(pieces.clean)):
        clean, frames, level = jax.tree.map(lambda array, i=i: array[i : i + 1], pieces)
        conditions = Conditions(call.text, frames, level)
        noise = invert(call.part(i, len(pieces.clean)), clean, conditions, keys, first)
        found.append(np.asarray(noise[0]))
    return Noise(
        stage.name,
        np.stack(found),
        steps,
        stage.strength,
        None if pieces.frames is None else np.asarray(pieces.frames),
        None if pieces.noise_level is None else stage.noise_level,
    )


def save_noise(path: Path, noise: Noise) -> None:
    """Writes noise, `.npz`, into a folder that exists.

    Raises:
      InputError: if it cannot be written.
    """
    file = io.BytesIO()
    there = {name: value for name, value in noise._asdict().items() if value is not None}
    np.savez(file, **there)
    write_bytes(path, file.getvalue())


def load_noise(path: Path) -> Noise:
    """Reads what `save_noise` wrote.

    Raises:
      InputError: if it is not such.
    """
    try:
        # numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes())) as found:
            noise = Noise(
                _scalar(found["stage"], "U"),
                _floats(found["noise"]),
                _scalar(found["steps"], "i"),
                float(_scalar(found["strength"], "f")),
                _floats(found["frames"]) if "frames" in found else None,
                _scalar(found["noise_level"], "i") if "noise_level" in found else None,
            )
        _check(noise)
    except ARRAY_DAMAGE as error:
        # Of a file that is no archive, NumPy's reason would be how to load pickles.
        reason = getattr(error, "strerror", None) or "give STAGE.noise.npz as it was written"
        raise InputError(
            f"{path} is no noise of sample.py --invert, or is damaged: {reason}"
        ) from None
    return noise


def _scalar(array: Any, kind: str) -> Any:
    """The one value of an array of a kind of dtype; raises ValueError."""
    if not isinstance(array, np.ndarray) or array.shape or array.dtype.kind != kind:
        raise ValueError
    return array.item()


def _floats(array: Any) -> np.ndarray:
    """Finite numbers as fp32; raises ValueError."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise ValueError
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    if not np.isfinite(floats).all():
        raise ValueError
    return floats


def _check(noise: Noise) -> None:
    """Raises ValueError for what no stage starts from."""
    frames, level = noise.frames, noise.noise_level
    if noise.stage not in stages.names():
        raise ValueError
    stage = stages.by_name(noise.stage)
    if (
        noise.noise.ndim != 5
        or noise.steps < 1
        or not 0 < noise.strength <= 1
        or (frames is not None) != stage.conditioned
        or (frames is not None and frames.shape[:4] != noise.noise.shape[:4])
        or (level is not None) != stage.noise_conditioned
        or (level is not None and level < 0)
    ):
        raise ValueError
