"""Solvers' rules: what each computes once, and in a step. A new solver is a class and an entry."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from show1_jax.diffusion import updates
from show1_jax.diffusion.schedule import to_epsilon

if TYPE_CHECKING:
    from show1_jax.diffusion.solvers import SolverConfig, SolverState


class Step(NamedTuple):
    """What a rule knows in a step.

    Attributes:
      config: the solver's settings.
      at: coefficients of the step, scalars.
      state: before the step.
      prediction: the network's output, like the sample.
      clean: the clean sample that it predicts, limited as the settings say.
      extra: the output's further channels; none, or like the sample.
      noise: Gaussian, like the sample; None unless the rule needs it.
    """

    config: "SolverConfig"
    at: updates.OneStep
    state: "SolverState"
    prediction: jax.Array
    clean: jax.Array
    extra: jax.Array
    noise: jax.Array | None


class Rule(Protocol):
    """How a solver goes from one noise level to the next.

    Attributes:
      needs_noise: whether a step needs Gaussian noise.
      to_next: whether a step ends at the next timestep, the last one at timestep 0, and not a
        fixed stride further. The grid of timesteps then includes 0, where nothing is predicted.
    """

    needs_noise: bool
    to_next: bool

    def coefficients(
        self, config: "SolverConfig", timesteps: np.ndarray, stride: int
    ) -> updates.Coefficients:
        """Computes what steps need, `(steps,)` fp32 each.

        Args:
          config: settings.
          timesteps: to predict at, noisiest first.
          stride: from one to the next, if they are evenly spaced.
        """

    def step(self, step: Step) -> jax.Array:
        """Computes the sample after a step."""


def _levels(
    config: "SolverConfig", timesteps: np.ndarray, stride: int, final: float
) -> tuple[np.ndarray, np.ndarray]:
    """The levels before and after each step of a fixed stride; the last one ends at `final`."""
    alpha_bar = config.schedule.alphas_cumprod
    previous = timesteps - stride
    return alpha_bar[timesteps], np.where(previous >= 0, alpha_bar[previous], np.float32(final))


class DDPM:
    """Ancestral sampling (arXiv 2006.11239, equations 6 and 7)."""

    needs_noise, to_next = True, False

    def coefficients(
        self, config: "SolverConfig", timesteps: np.ndarray, stride: int
    ) -> updates.Coefficients:
        """See `Rule.coefficients`."""
        levels = _levels(config, timesteps, stride, 1)
        return {"timestep": timesteps, **updates.ddpm_coefficients(*levels)}

    def step(self, step: Step) -> jax.Array:
        """See `Rule.step`. Raises ValueError if noise or a learned variance is missing."""
        at, noise = step.at, step.noise
        mean = updates.ddpm(at, step.state.sample, step.clean)
        if noise is None:
            raise ValueError("a ddpm step needs noise; pass noise")
        if step.config.variance != "learned_range":
            log_variance = at[f"log_{step.config.variance}"]
        elif step.extra.shape != noise.shape:
            raise ValueError(
                "a learned variance needs a model_output with twice the sample's channels"
            )
        else:
            log_variance = updates.learned_log_variance(at, step.extra)
        # Timestep 0 adds no noise. A learned variance can overflow there, so select, not multiply.
        return mean + jnp.where(at["timestep"] > 0, jnp.exp(0.5 * log_variance) * noise, 0)


class DDIM:
    """The deterministic solver (arXiv 2010.02502, equation 12 with eta = 0)."""

    needs_noise, to_next = False, False

    def coefficients(
        self, config: "SolverConfig", timesteps: np.ndarray, stride: int
    ) -> updates.Coefficients:
        """See `Rule.coefficients`."""
        final = 1 if config.set_alpha_to_one else config.schedule.alphas_cumprod[0]
        return {"next_alpha_bar": _levels(config, timesteps, stride, final)[1]}

    def step(self, step: Step) -> jax.Array:
        """See `Rule.step`."""
        # The noise is the predicted one, even if the clean sample was clipped.
        level, kind = step.at["alpha_bar"], step.config.prediction
        epsilon = to_epsilon(step.prediction, step.state.sample, level, kind)
        return updates.ddim(step.clean, epsilon, step.at["next_alpha_bar"])


class DPMSolver:
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2)."""

    needs_noise, to_next = False, True

    def coefficients(
        self, config: "SolverConfig", timesteps: np.ndarray, stride: int
    ) -> updates.Coefficients:
        """See `Rule.coefficients`."""
        del stride
        # It steps to the next timestep, and ends at timestep 0, which has some noise.
        alpha_bar = config.schedule.alphas_cumprod
        now, then = alpha_bar[timesteps], alpha_bar[np.append(timesteps[1:], 0)]
        found = updates.dpm_solver_coefficients(now, then)
        if config.order == 1:
            found["correction"][:] = 0
        elif config.lower_order_final and len(timesteps) < 15:
            found["correction"][-1] = 0
        return found

    def step(self, step: Step) -> jax.Array:
        """See `Rule.step`."""
        at, state = step.at, step.state
        # The first step taken has no previous prediction; it need not be step 0.
        correction = jnp.where(state.taken > 0, at["correction"], 0)
        return updates.dpm_solver(at, state.sample, step.clean, state.clean, correction)


RULES: dict[str, Rule] = {"ddpm": DDPM(), "ddim": DDIM(), "dpm_solver": DPMSolver()}
"""By the name that `SolverConfig.kind` gives them."""
