"""Solvers turn noise into a sample, step by step, with a network's predictions.

They are DDPM, DDIM (deterministic) and DPM-Solver++ 2M, with the timesteps of the released Show-1
schedulers. A solver holds only constants, so a loop over its steps is one `jax.lax.fori_loop`,
whose bounds may be traced:

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
from show1_jax.diffusion.rules import RULES, Step
from show1_jax.diffusion.schedule import PREDICTIONS, NoiseSchedule, to_clean
from show1_jax.diffusion.threshold import dynamic_threshold
from show1_jax.errors import InputError

SPACINGS = ("leading", "linspace", "trailing")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")


@dataclasses.dataclass(frozen=True)
class SolverConfig:
    """All settings of a solver except its number of steps.

    Attributes:
      kind: "ddpm", "ddim" or "dpm_solver"; a name in `rules.RULES`.
      schedule: noise schedule that the network was trained with.
      prediction: "epsilon" or "v", what the network predicts.
      spacing: "leading", "linspace" or "trailing"; how timesteps are chosen.
      steps_offset: added to timesteps of "leading" spacing.
      clip: predicted clean samples are clipped to [-clip, clip]; None for no clipping.
      threshold: quantile of dynamic thresholding; None for none. Excludes `clip`.
      threshold_max: maximum of dynamic thresholding; see `dynamic_threshold`.
      variance: for ddpm: "fixed_small", "fixed_large" or "learned_range".
      set_alpha_to_one: for ddim: whether the last step removes all noise. Otherwise it ends at
        the noise level of timestep 0.
      order: for dpm_solver: 1 or 2.
      lower_order_final: for dpm_solver: whether the last of fewer than 15 steps is first order.
      lambda_min_clipped: for dpm_solver: lowest log(signal rate / noise rate) to start at.
    """

    kind: str
    schedule: NoiseSchedule
    prediction: str = "epsilon"
    spacing: str = "leading"
    steps_offset: int = 0
    clip: float | None = None
    threshold: float | None = None
    threshold_max: float = 1.0
    variance: str = "fixed_small"
    set_alpha_to_one: bool = True
    order: int = 2
    lower_order_final: bool = True
    lambda_min_clipped: float = -float("inf")

    def __post_init__(self) -> None:
        """Raises InputError if settings are unknown, out of range or contradict each other."""
        for name, options in (
            ("kind", tuple(RULES)),
            ("prediction", PREDICTIONS),
            ("spacing", SPACINGS),
            ("variance", VARIANCES),
            ("order", (1, 2)),
        ):
            if getattr(self, name) not in options:
                known = ", ".join(map(str, options))
                raise InputError(f"solver {name} {getattr(self, name)!r} is not one of {known}")
        if self.clip is not None and self.threshold is not None:
            raise InputError("solver clip and threshold are both set; set one of them to None")
        if self.clip is not None and self.clip <= 0:
            raise InputError(f"solver clip is {self.clip}, but must be more than 0")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"solver threshold is {self.threshold}, but must be 0 to 1")
        if self.threshold_max < 1:
            raise InputError(
                f"solver threshold_max is {self.threshold_max}, but must be at least 1"
            )


class SolverState(NamedTuple):
    """The state between two steps.

    Attributes:
      sample: noisy sample, fp32.
      clean: clean sample that the last step predicted, fp32.
      taken: number of steps taken, int32.
    """

    sample: jax.Array
    clean: jax.Array
    taken: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Solver:
    """A solver for a number of steps; see `make_solver`.

    Attributes:
      config: settings.
      timesteps: training steps to predict at, noisiest first, `(num_steps,)` int32.
      coefficients: of the update rule, `(num_steps,)` fp32 each.
    """

    config: SolverConfig
    timesteps: np.ndarray
    coefficients: updates.Coefficients

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.timesteps)

    @property
    def needs_noise(self) -> bool:
        """Whether `step` needs Gaussian noise."""
        return RULES[self.config.kind].needs_noise

    def first_step(self, strength: ArrayLike) -> int | jax.Array:
        """Returns the index of the first step to take, for a share `strength` of all steps.

        Args:
          strength: 0 to 1. A Python float gives an int, `n - int(n * strength)`. An array, traced
            or not, gives int32; it is multiplied in fp32, which may round up to a whole number.

        Raises:
          InputError: if `strength` is a float that leaves no step.
        """
        n = self.num_steps
        if not isinstance(strength, int | float):
            kept = jnp.floor(n * jnp.asarray(strength, jnp.float32)).astype(jnp.int32)
            return n - jnp.clip(kept, 0, n)
        if not 0 <= strength <= 1 or int(n * strength) < 1:
            raise InputError(f"strength {strength} leaves none of {n} steps; use {1 / n:.3g} to 1")
        return n - int(n * strength)

    def init(self, sample: ArrayLike) -> SolverState:
        """Returns the state before the first step, whose sample has that step's noise level."""
        sample = jnp.asarray(sample, jnp.float32)
        return SolverState(sample, jnp.zeros_like(sample), jnp.zeros((), jnp.int32))

    def step(
        self,
        state: SolverState,
        i: ArrayLike,
        model_output: jax.Array,
        noise: jax.Array | None = None,
    ) -> SolverState:
        """Takes step `i`.

        Args:
          state: before the step; its sample is `(..., height, width, channels)`.
          i: index of the step; may be traced.
          model_output: of the network at `timesteps[i]`, like the sample. It may have twice the
            channels: "learned_range" reads the second half, other variances ignore it.
          noise: Gaussian, like the sample; see `needs_noise`.

        Raises:
          ValueError: if noise or a learned variance is missing.
        """
        at = {name: jnp.asarray(column)[i] for name, column in self.coefficients.items()}
        prediction, extra = jnp.split(model_output, [state.sample.shape[-1]], axis=-1)
        kind, rule = self.config.prediction, RULES[self.config.kind]
        clean = self._limit(to_clean(prediction, state.sample, at["alpha_bar"], kind))
        step = Step(self.config, at, state, prediction, clean, extra, noise)
        return SolverState(rule.step(step), clean, state.taken + 1)

    def _limit(self, clean: jax.Array) -> jax.Array:
        if self.config.threshold is not None:
            return dynamic_threshold(clean, self.config.threshold, self.config.threshold_max)
        if self.config.clip is not None:
            return jnp.clip(clean, -self.config.clip, self.config.clip)
        return clean


@functools.cache
def make_solver(config: SolverConfig, num_steps: int) -> Solver:
    """Makes a solver; equal arguments give the same object.

    Args:
      config: settings.
      num_steps: number of steps. "trailing" spacing with `lambda_min_clipped` leaves out steps
        that are too noisy.

    Raises:
      InputError: if there are fewer timesteps than steps.
    """
    alpha_bar = config.schedule.alphas_cumprod
    timesteps = _timesteps(config, num_steps, alpha_bar)
    own = RULES[config.kind].coefficients(config, timesteps, len(alpha_bar) // num_steps)
    coefficients = {"alpha_bar": alpha_bar[timesteps], **own}
    return Solver(config, timesteps, coefficients)


def _timesteps(config: SolverConfig, num_steps: int, alpha_bar: np.ndarray) -> np.ndarray:
    total = last = len(alpha_bar)
    if not 1 <= num_steps <= total:
        raise InputError(f"the number of steps is {num_steps}, but must be 1 to {total}")
    points = num_steps
    if RULES[config.kind].to_next:
        # The grid includes timestep 0, where the solver ends without a prediction.
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
    # Cut off the end point, and the extra point that arange has at some step counts.
    timesteps = grid[:num_steps].astype(np.int32)
    if not len(timesteps) or timesteps[0] >= total or (np.diff(timesteps) >= 0).any():
        raise InputError(
            f"{num_steps} {config.spacing} steps with offset {config.steps_offset} "
            f"do not fit into {last} timesteps; use fewer"
        )
    return timesteps
