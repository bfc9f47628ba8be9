"""Noise schedules of variance-preserving diffusion, and conversions between predictions.

A noisy sample is `x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise`
(DDPM, arXiv 2006.11239, equation 4).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from show1_jax.errors import InputError

KINDS = ("linear", "scaled_linear", "cosine")
PREDICTIONS = ("epsilon", "v")


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """The noise variances (betas) of `train_steps` training steps.

    Attributes:
      kind: "linear": betas grow linearly from `beta_start` to `beta_end`. "scaled_linear":
        sqrt(beta) grows linearly. "cosine": arXiv 2102.09672, equation 17, without a start or end.
      beta_start: first beta.
      beta_end: last beta.
      train_steps: number of training steps.
    """

    kind: str
    beta_start: float = 1e-4
    beta_end: float = 0.02
    train_steps: int = 1000

    def __post_init__(self) -> None:
        """Raises InputError if the kind is unknown or a number is out of range."""
        if self.kind not in KINDS:
            raise InputError(f"noise schedule {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.train_steps < 1:
            raise InputError(f"train_steps is {self.train_steps}, but must be at least 1")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(
                f"betas are {self.beta_start} to {self.beta_end}, but must satisfy "
                "0 < beta_start <= beta_end < 1"
            )

    @property
    def betas(self) -> np.ndarray:
        """Noise variance that each training step adds, `(train_steps,)` fp32."""
        if self.kind == "cosine":
            edges = np.arange(self.train_steps + 1) / self.train_steps
            remaining = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - remaining[1:] / remaining[:-1], 0.999).astype(np.float32)
        if self.kind == "scaled_linear":
            return _linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps) ** 2
        return _linspace(self.beta_start, self.beta_end, self.train_steps)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha_bar, the share of signal variance left at each step, `(train_steps,)` fp32."""
        # PyTorch's cumprod of fp32 accumulates in fp64. This gives the same bits.
        return np.cumprod(1 - self.betas, dtype=np.float64).astype(np.float32)


def add_noise(
    alphas_cumprod: ArrayLike, clean: ArrayLike, noise: ArrayLike, timesteps: ArrayLike
) -> jax.Array:
    """Adds noise to clean samples, in fp32 (DDPM, equation 4).

    Args:
      alphas_cumprod: `(train_steps,)`.
      clean: `(batch, ...)`.
      noise: like `clean`.
      timesteps: `(batch,)` or a scalar.

    Returns:
      `(batch, ...)` fp32.
    """
    signal, sigma = _rates(alphas_cumprod, timesteps, jnp.ndim(clean))
    return signal * clean + sigma * noise


def velocity(
    alphas_cumprod: ArrayLike, clean: ArrayLike, noise: ArrayLike, timesteps: ArrayLike
) -> jax.Array:
    """Computes what a "v" network predicts (arXiv 2202.00512, appendix D), in fp32.

    `v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) clean`. Arguments as in `add_noise`.
    """
    signal, sigma = _rates(alphas_cumprod, timesteps, jnp.ndim(clean))
    return signal * noise - sigma * clean


def to_clean(
    prediction: ArrayLike, sample: ArrayLike, alpha_bar: ArrayLike, prediction_type: str
) -> jax.Array:
    """Computes the clean sample from a network's prediction, in fp32.

    Args:
      prediction: what the network predicted.
      sample: noisy sample, like `prediction`.
      alpha_bar: level of the sample; broadcasts with it.
      prediction_type: "epsilon" or "v".

    Raises:
      InputError: if the prediction type is unknown.
    """
    prediction, sample, signal, sigma = _prepare(prediction, sample, alpha_bar, prediction_type)
    if prediction_type == "epsilon":
        return (sample - sigma * prediction) / signal
    return signal * sample - sigma * prediction


def to_epsilon(
    prediction: ArrayLike, sample: ArrayLike, alpha_bar: ArrayLike, prediction_type: str
) -> jax.Array:
    """Computes the noise from a network's prediction; arguments as in `to_clean`."""
    prediction, sample, signal, sigma = _prepare(prediction, sample, alpha_bar, prediction_type)
    if prediction_type == "epsilon":
        return prediction
    return signal * prediction + sigma * sample


def _prepare(
    prediction: ArrayLike, sample: ArrayLike, alpha_bar: ArrayLike, prediction_type: str
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    if prediction_type not in PREDICTIONS:
        raise InputError(f"prediction {prediction_type!r} is not one of {', '.join(PREDICTIONS)}")
    alpha_bar = jnp.asarray(alpha_bar, jnp.float32)
    return (
        jnp.asarray(prediction, jnp.float32),
        jnp.asarray(sample, jnp.float32),
        jnp.sqrt(alpha_bar),
        jnp.sqrt(1 - alpha_bar),
    )


def _rates(
    alphas_cumprod: ArrayLike, timesteps: ArrayLike, ndim: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the rates of signal and noise, with `ndim` axes to broadcast with the samples."""
    alpha_bar = jnp.asarray(alphas_cumprod, jnp.float32)[jnp.asarray(timesteps)]
    alpha_bar = alpha_bar.reshape(alpha_bar.shape + (1,) * (ndim - alpha_bar.ndim))
    return jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)


def _linspace(start: float, stop: float, num: int) -> np.ndarray:
    """Computes PyTorch's fp32 linspace: an fp32 step, counted from the nearer end, rounded once."""
    first, last = np.float32(start), np.float32(stop)
    step = np.float64((last - first) / np.float32(max(num - 1, 1)))
    i = np.arange(num)
    return np.where(i < num // 2, first + step * i, last - step * (num - 1 - i)).astype(np.float32)
