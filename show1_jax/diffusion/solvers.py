"""Solvers: how a network's predictions turn noise into a sample, step by step.

DDPM, DDIM (deterministic) and DPM-Solver++ 2M, with the timesteps of the
released Show-1 schedulers. A solver holds nothing but constants, so a loop
over its steps is one `jax.lax.fori_loop` whose bounds may be traced:

    def body(i, state):
        return solver.step(state, i, predict(state.sample, timesteps[i]))

    state = jax.lax.fori_loop(first, solver.num_steps, body, solver.init(noisy))
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from show1_jax.diffusion import updates
from show1_jax.diffusion.schedule import PREDICTIONS, NoiseSchedule, to_clean, to_epsilon
from show1_jax.diffusion.threshold import dynamic_threshold
from show1_jax.errors import InputError

KINDS = ("ddpm", "ddim", "dpm_solver")
SPACINGS = ("leading", "linspace", "trailing")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")


@dataclasses.dataclass(frozen=True)
class SolverConfig:
    """Everything about a solver but its number of steps.

    Predicted clean samples are clipped to [-clip, clip], or thresholded
    dynamically at the quantile `threshold` with at most `threshold_max`, or
    left alone (both None). The last fields concern one kind each. Raises
    InputError for settings that are unknown or contradict each other.
    """

    kind: str
    schedule: NoiseSchedule
    prediction: str = "epsilon"
    spacing: str = "leading"
    steps_offset: int = 0
    clip: float | None = None
    threshold: float | None = None
    threshold_max: float = 1.0
    variance: str = "fixed_small"  # ddpm
    set_alpha_to_one: bool = True  # ddim: the last step removes all noise, not all but step 0's
    order: int = 2  # dpm_solver, as the next two
    lower_order_final: bool = True  # the last of fewer than 15 steps is first order
    lambda_min_clipped: float = -float("inf")  # start no noisier than this log(signal / noise)

    def __post_init__(self) -> None:
        """Refuses settings that do not exist or contradict each other."""
        for name, options in (
            ("kind", KINDS),
            ("prediction", PREDICTIONS),
            ("spacing", SPACINGS),
            ("variance", VARIANCES),
            ("order", (1, 2)),
        ):
            if getattr(self, name) not in options:
                known = ", ".join(map(str, options))
                raise InputError(f"solver {name} {getattr(self, name)!r} is not one of {known}")
        if self.clip is not None and self.threshold is not None:
            raise InputError("a solver either clips or thresholds dynamically, not both")
        if self.clip is not None and self.clip <= 0:
            raise InputError(f"a solver's clip range must be positive, not {self.clip}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"a threshold quantile lies between 0 and 1, not at {self.threshold}")
        if self.threshold_max < 1:
            raise InputError(f"threshold_max must be at least 1, not {self.threshold_max}")


class SolverState(NamedTuple):
    """A trajectory between two steps: a pytree of fp32 arrays like the sample, and a count."""

    sample: jax.Array
    clean: jax.Array  # the last step's prediction of the clean sample
    taken: jax.Array  # how many steps have been executed, int32


@dataclasses.dataclass(frozen=True, eq=False)
class Solver:
    """A solver for a number of steps; see `make_solver`.

    `timesteps` are the (num_steps,) int32 training steps to predict at,
    noisiest first; `coefficients` are (num_steps,) fp32 columns.
    """

    config: SolverConfig
    timesteps: np.ndarray
    coefficients: updates.Coefficients

    @property
    def num_steps(self) -> int:
        """How many steps there are."""
        return len(self.timesteps)

    @property
    def needs_noise(self) -> bool:
        """Whether `step` must be given fresh Gaussian noise."""
        return self.config.kind == "ddpm"

    def first_step(self, strength: ArrayLike) -> int | jax.Array:
        """The first step to execute so that `strength` times all steps are executed.

        A Python float gives an int, exactly `n - int(n * strength)`, and raises
        InputError unless that leaves a step to execute. An array (traced or
        not) gives int32 and is taken in fp32, where a product just below a
        whole number may round up to it.
        """
        n = self.num_steps
        if not isinstance(strength, int | float):
            kept = jnp.floor(n * jnp.asarray(strength, jnp.float32)).astype(jnp.int32)
            return n - jnp.clip(kept, 0, n)
        if not 0 <= strength <= 1 or int(n * strength) < 1:
            raise InputError(
                f"strength {strength} of {n} steps is not possible; use {1 / n:.3g} to 1"
            )
        return n - int(n * strength)

    def init(self, sample: ArrayLike) -> SolverState:
        """The state before the first executed step, from a sample noised to its timestep."""
        sample = jnp.asarray(sample, jnp.float32)
        return SolverState(sample, jnp.zeros_like(sample), jnp.zeros((), jnp.int32))

    def step(
        self,
        state: SolverState,
        i: ArrayLike,
        model_output: jax.Array,
        noise: jax.Array | None = None,
    ) -> SolverState:
        """Executes step `i` (traced) given the network's output at `timesteps[i]`.

        Arrays are (..., height, width, channels); `model_output` may have as
        many channels again, which "learned_range" reads and all others drop.
        `noise` is like the sample. Raises ValueError where noise or learned
        variance is missing.
        """
        at = {name: jnp.asarray(column)[i] for name, column in self.coefficients.items()}
        prediction, extra = jnp.split(model_output, [state.sample.shape[-1]], axis=-1)
        kind = self.config.prediction
        clean = self._limit(to_clean(prediction, state.sample, at["alpha_bar"], kind))
        if self.config.kind == "ddpm":
            sample = updates.ddpm(at, state.sample, clean) + self._noise(at, extra, noise)
        elif self.config.kind == "ddim":
            # The noise stays the predicted one even where the clean sample was limited.
            epsilon = to_epsilon(prediction, state.sample, at["alpha_bar"], kind)
            sample = updates.ddim(clean, epsilon, at["next_alpha_bar"])
        else:
            # The first executed step has no previous prediction, wherever strength put it.
            correction = jnp.where(state.taken > 0, at["correction"], 0)
            sample = updates.dpm_solver(at, state.sample, clean, state.clean, correction)
        return SolverState(sample, clean, state.taken + 1)

    def _limit(self, clean: jax.Array) -> jax.Array:
        if self.config.threshold is not None:
            return dynamic_threshold(clean, self.config.threshold, self.config.threshold_max)
        if self.config.clip is not None:
            return jnp.clip(clean, -self.config.clip, self.config.clip)
        return clean

    def _noise(self, at: updates.OneStep, extra: jax.Array, noise: jax.Array | None) -> jax.Array:
        if noise is None:
            raise ValueError("a ddpm step needs noise")
        if self.config.variance != "learned_range":
            log_variance = at[f"log_{self.config.variance}"]
        elif extra.shape != noise.shape:
            raise ValueError("a learned variance needs as many channels as the sample")
        else:
            log_variance = updates.learned_log_variance(at, extra)
        # A learned variance can overflow at timestep 0, which adds no noise: select, not multiply.
        return jnp.where(at["timestep"] > 0, jnp.exp(0.5 * log_variance) * noise, 0)


@functools.cache
def make_solver(config: SolverConfig, num_steps: int) -> Solver:
    """The solver of `config` in `num_steps` steps; equal arguments give the same object.

    "trailing" spacing with a clipped lambda leaves out the steps that would be
    too noisy. Raises InputError if so many steps do not fit.
    """
    alpha_bar = config.schedule.alphas_cumprod
    timesteps = _timesteps(config, num_steps, alpha_bar)
    now = alpha_bar[timesteps]
    # DDPM and DDIM keep a fixed stride, whatever the spacing; before step 0 lies `final`.
    previous = timesteps - len(alpha_bar) // num_steps
    final = alpha_bar[0] if config.kind == "ddim" and not config.set_alpha_to_one else 1
    then = np.where(previous >= 0, alpha_bar[previous], np.float32(final))
    coefficients = {"alpha_bar": now}
    if config.kind == "ddpm":
        coefficients |= {"timestep": timesteps, **updates.ddpm_coefficients(now, then)}
    elif config.kind == "ddim":
        coefficients |= {"next_alpha_bar": then}
    else:
        # DPM-Solver steps from one timestep to the next and ends at timestep 0, not at no noise.
        then = alpha_bar[np.append(timesteps[1:], 0)]
        coefficients |= updates.dpm_solver_coefficients(now, then)
        if config.order == 1:
            coefficients["correction"][:] = 0
        elif config.lower_order_final and len(timesteps) < 15:
            coefficients["correction"][-1] = 0
    return Solver(config, timesteps, coefficients)


def _timesteps(config: SolverConfig, num_steps: int, alpha_bar: np.ndarray) -> np.ndarray:
    total = last = len(alpha_bar)
    if not 1 <= num_steps <= total:
        raise InputError(f"the number of steps must be 1 to {total}, not {num_steps}")
    points = num_steps
    if config.kind == "dpm_solver":
        # The grid includes the end, timestep 0, where nothing is predicted.
        points += 1
        lowest = np.float32(config.lambda_min_clipped)
        last -= int(np.searchsorted(updates.half_log_snr(alpha_bar)[::-1], lowest))
    grid: np.ndarray
    if config.spacing == "linspace":
        grid = np.linspace(0, last - 1, points).round()[::-1]
    elif config.spacing == "leading":
        grid = np.arange(points)[::-1] * (last // points) + config.steps_offset
    else:
        grid = np.arange(last, 0, -total / num_steps).round() - 1
    # Cut off the end point, and the extra one that rounding gives arange at some step counts.
    timesteps = grid[:num_steps].astype(np.int32)
    if not len(timesteps) or timesteps[0] >= total or (np.diff(timesteps) >= 0).any():
        raise InputError(
            f"{num_steps} {config.spacing} steps with offset {config.steps_offset} "
            f"do not fit into {last} timesteps; use fewer"
        )
    return timesteps
