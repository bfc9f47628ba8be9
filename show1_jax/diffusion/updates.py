"""The update rules of the solvers: one step from a noise level to a lower one.

Each rule is a function from host-side noise levels to fp32 coefficients, and
a pure function that applies them. Levels are alpha_bar, the share of signal
variance: `now` where the network predicts, `then` where the step arrives.
Coefficients keep fp32 at every operation, as the released schedulers do.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Coefficients = dict[str, np.ndarray]
OneStep = dict[str, jax.Array]  # a step's own coefficients, scalars


def ddpm_coefficients(now: np.ndarray, then: np.ndarray) -> Coefficients:
    """Coefficients of `ddpm` (arXiv 2006.11239, equations 6 and 7), levels (steps,) each."""
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
    """The mean of an ancestral step (DDPM, equation 7), without its noise."""
    return at["clean"] * clean + at["sample"] * sample


def learned_log_variance(at: OneStep, output: jax.Array) -> jax.Array:
    """A network's variance, -1 to 1 between the two fixed ones (2102.09672, equation 15).

    Outputs beyond that range extrapolate, as in the released models.
    """
    share = (output.astype(jnp.float32) + 1) / 2
    return share * at["log_fixed_large"] + (1 - share) * at["log_fixed_small"]


def ddim(clean: jax.Array, epsilon: jax.Array, then: ArrayLike) -> jax.Array:
    """The sample at level `then` along the same noise (2010.02502, equation 12, eta = 0).

    A higher level than now samples, a lower one inverts.
    """
    then = jnp.asarray(then, jnp.float32)
    return jnp.sqrt(then) * clean + jnp.sqrt(1 - then) * epsilon


def half_log_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """The lambda of DPM-Solver, log(signal rate / noise rate)."""
    return np.log(np.sqrt(alpha_bar)) - np.log(np.sqrt(1 - alpha_bar))


def dpm_solver_coefficients(now: np.ndarray, then: np.ndarray) -> Coefficients:
    """Coefficients of `dpm_solver`, levels (steps,) each; `correction` is 1 / (2 r)."""
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
    """A step of DPM-Solver++ 2M (2211.01095, algorithm 2, midpoint).

    `previous` is the clean sample that the step before predicted; the scalar
    `correction` is `at["correction"]`, or 0 for a first-order step.
    """
    return at["sample"] * sample + at["clean"] * (clean + correction * (clean - previous))
