"""Update rules of the solvers: one step from a noise level to a lower one.

Each rule has two functions: one computes fp32 coefficients from noise levels on the host, the
other applies them. A level is alpha_bar, the share of signal variance. The network predicts at
level `now`, and the step ends at level `then`. Coefficients are fp32 after every operation, like
those of the released schedulers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Coefficients = dict[str, np.ndarray]
OneStep = dict[str, jax.Array]  # coefficients of one step, scalars


def ddpm_coefficients(now: np.ndarray, then: np.ndarray) -> Coefficients:
    """Computes coefficients of `ddpm` (arXiv 2006.11239, eq. 6 and 7) from levels `(steps,)`."""
    alpha = now / then
    beta = 1 - alpha
    posterior = np.maximum((1 - then) / (1 - now) * beta, np.float32(1e-20))
    return {
        "clean": np.sqrt(then) * beta / (1 - now),
        "sample": np.sqrt(alpha) * (1 - then) / (1 - now),
        "log_fixed_small": np.log(posterior),
        "log_fixed_large": np.log(beta),
    }


def ddpm(at: OneStep, sample: jax.Array, clean: jax.Array) -> jax.Array:
    """Computes the mean of an ancestral step (DDPM, equation 7), without its noise."""
    return at["clean"] * clean + at["sample"] * sample


def learned_log_variance(at: OneStep, output: jax.Array) -> jax.Array:
    """Computes a learned log variance (arXiv 2102.09672, equation 15).

    An output of -1 is the small fixed variance, an output of 1 is the large one. Outputs beyond
    that range extrapolate, as in the released models.
    """
    share = (output.astype(jnp.float32) + 1) / 2
    return share * at["log_fixed_large"] + (1 - share) * at["log_fixed_small"]


def ddim(clean: jax.Array, epsilon: jax.Array, then: ArrayLike) -> jax.Array:
    """Computes the sample at level `then` with the same noise (arXiv 2010.02502, eq. 12, eta = 0).

    If `then` is higher than the present level, this samples; if it is lower, it inverts.
    """
    then = jnp.asarray(then, jnp.float32)
    return jnp.sqrt(then) * clean + jnp.sqrt(1 - then) * epsilon


def half_log_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """Computes the lambda of DPM-Solver, log(signal rate / noise rate)."""
    return np.log(np.sqrt(alpha_bar)) - np.log(np.sqrt(1 - alpha_bar))


def dpm_solver_coefficients(now: np.ndarray, then: np.ndarray) -> Coefficients:
    """Computes coefficients of `dpm_solver` from levels `(steps,)`; `correction` is 1 / (2 r)."""
    lambdas = half_log_snr(now)
    h = half_log_snr(then) - lambdas
    correction = np.zeros_like(h)
    correction[1:] = np.float32(0.5) * h[1:] / np.diff(lambdas)
    return {
        "sample": np.sqrt(1 - then) / np.sqrt(1 - now),
        "clean": np.sqrt(then) * (1 - np.exp(-h)),
        "correction": correction,
    }


def dpm_solver(
    at: OneStep, sample: jax.Array, clean: jax.Array, previous: jax.Array, correction: jax.Array
) -> jax.Array:
    """Takes a step of DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2, midpoint).

    Args:
      at: coefficients of this step.
      sample: noisy sample.
      clean: predicted clean sample, like `sample`.
      previous: clean sample that the step before predicted, like `sample`.
      correction: `at["correction"]`, or 0 for a first-order step.
    """
    return at["sample"] * sample + at["clean"] * (clean + correction * (clean - previous))
