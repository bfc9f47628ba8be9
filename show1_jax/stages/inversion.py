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
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from show1_jax.diffusion.schedule import to_clean, to_epsilon
from show1_jax.diffusion.solvers import SolverConfig, make_solver
from show1_jax.diffusion.updates import ddim
from show1_jax.errors import InputError
from show1_jax.media import write_bytes
from show1_jax.stages.sampling import Conditions, Denoiser, Progress, predict

REPEATS = 3  # of the prediction in each step


def inverter(denoiser: Denoiser, steps: int) -> Denoiser:
    """The denoiser with the deterministic solver that can be run backwards.

    Without thresholds, which cannot be undone, and without guidance, under
    which a clip has no noise that makes it.
    """
    own = denoiser.solver.config
    solver = make_solver(SolverConfig("ddim", own.schedule, own.prediction), steps)
    return dataclasses.replace(denoiser, solver=solver, guided=False, dropout=False)


def from_noise(denoiser: Denoiser, steps: int) -> Denoiser:
    """The denoiser for sampling from the noise of a clip, the way that it came.

    Where it is guided it leads elsewhere, and so needs its thresholds again.
    """
    back = inverter(denoiser, steps)
    if not denoiser.guided:
        return back
    own = denoiser.solver.config
    limits = {name: getattr(own, name) for name in ("clip", "threshold", "threshold_max")}
    config = dataclasses.replace(back.solver.config, **limits)
    return dataclasses.replace(back, solver=make_solver(config, steps), guided=True)


@functools.partial(jax.jit, static_argnums=0)
def _back(
    denoiser: Denoiser, params: Any, sample: jax.Array, step: jax.Array, conditions: Conditions
) -> jax.Array:
    """The sample before one of the solver's steps, from that after it."""
    solver = denoiser.solver
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
        output = predict(denoiser, params, guess, step, conditions)[..., : sample.shape[-1]]
        return (sample - of_output * output) / of_sample

    return jax.lax.fori_loop(0, REPEATS, before, sample)


def invert(
    denoiser: Denoiser,
    params: Any,
    clean: jax.Array,
    conditions: Conditions,
    progress: Progress | None = None,
    first_step: int = 0,
) -> jax.Array:
    """The noise that `run` makes into `clean`, given the same denoiser and conditions.

    Args:
      denoiser: from `inverter`.
      params: the network's parameters.
      clean: `(batch, frames, height, width, channels)`.
      conditions: what the network is told.
      progress: told how many steps are done.
      first_step: the last one to undo.

    Returns:
      Like `clean`, at the noise level of the solver's first step.
    """
    steps = denoiser.solver.num_steps - first_step
    sample = jnp.asarray(clean, jnp.float32)
    for done, step in enumerate(reversed(range(first_step, steps + first_step)), start=1):
        sample = _back(denoiser, params, sample, jnp.int32(step), conditions)
        if progress is not None:
            progress(done, steps)
    return sample


class Noise(NamedTuple):
    """Noise that a clip came from.

    Attributes:
      stage: whose denoiser makes it into the clip.
      noise: `(pieces, frames, height, width, channels)`: all gaps or windows, or one.
      steps: in how many steps of the whole schedule.
      strength: the share of them that it takes; 1 but for translation.
    """

    stage: str
    noise: np.ndarray
    steps: int
    strength: float = 1.0


def save_noise(path: Path, noise: Noise) -> None:
    """Writes noise, `.npz`, into a folder that exists.

    Raises:
      InputError: if it cannot be written.
    """
    file = io.BytesIO()
    np.savez(file, **noise._asdict())
    write_bytes(path, file.getvalue())


def load_noise(path: Path) -> Noise:
    """Reads what `save_noise` wrote.

    Raises:
      InputError: if it is not such.
    """
    try:
        # numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes())) as found:
            noise = np.asarray(found["noise"], np.float32)
            return Noise(str(found["stage"]), noise, int(found["steps"]), float(found["strength"]))
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} is no noise of sample.py --invert, or is damaged: {reason}"
        ) from None
