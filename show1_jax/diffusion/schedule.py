"""Noise schedules of variance-preserving diffusion, and the algebra they imply.

A noisy sample is `x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise`
(DDPM, arXiv 2006.11239, equation 4); everything here follows from that line.
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
    """How fast training destroys the signal: `train_steps` betas of one kind.

    "linear" and "scaled_linear" (linear in sqrt(beta)) run from `beta_start` to
    `beta_end`; "cosine" (arXiv 2102.09672, equation 17) needs neither. Raises
    InputError for an unknown kind or betas outside (0, 1).
    """

    kind: str
    beta_start: float = 1e-4
    beta_end: float = 0.02
    train_steps: int = 1000

    def __post_init__(self) -> None:
        """Refuses schedules that do not exist."""
        if self.kind not in KINDS:
            raise InputError(f"noise schedule {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.train_steps < 1:
            raise InputError(f"a noise schedule needs at least 1 step, not {self.train_steps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(
                f"betas must satisfy 0 < beta_start <= beta_end < 1, "
                f"not {self.beta_start} and {self.beta_end}"
            )

    @property
    def betas(self) -> np.ndarray:
        """The (train_steps,) fp32 noise variances added by each training step."""
        if self.kind == "cosine":
            edges = np.arange(self.train_steps + 1) / self.train_steps
            remaining = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - remaining[1:] / remaining[:-1], 0.999).astype(np.float32)
        if self.kind == "scaled_linear":
            return _linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps) ** 2
        return _linspace(self.beta_start, self.beta_end, self.train_steps)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """The (train_steps,) fp32 alpha_bar: the share of signal variance left at each step."""
        # PyTorch's cumprod of fp32 accumulates in fp64; so do we, to the last bit.
        return np.cumprod(1 - self.betas, dtype=np.float64).astype(np.float32)


def add_noise(
    alphas_cumprod: ArrayLike, clean: ArrayLike, noise: ArrayLike, timesteps: ArrayLike
) -> jax.Array:
    """Noises clean samples to their timesteps, in fp32 (DDPM, equation 4).

    `clean` and `noise` are (batch, ...), `timesteps` (batch,) or a scalar.
    """
    signal, spread = _rates(alphas_cumprod, timesteps, jnp.ndim(clean))
    return signal * clean + spread * noise


def velocity(
    alphas_cumprod: ArrayLike, clean: ArrayLike, noise: ArrayLike, timesteps: ArrayLike
) -> jax.Array:
    """What a "v" network is trained to predict (arXiv 2202.00512, appendix D).

    Shapes as in `add_noise`: `v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) clean`.
    """
    signal, spread = _rates(alphas_cumprod, timesteps, jnp.ndim(clean))
    return signal * noise - spread * clean


def to_clean(
    prediction: ArrayLike, sample: ArrayLike, alpha_bar: ArrayLike, prediction_type: str
) -> jax.Array:
    """The clean sample implied by a network's "epsilon" or "v" prediction, in fp32.

    `prediction` and `sample` have one shape, `alpha_bar` broadcasts with it.
    Raises InputError for another prediction type.
    """
    prediction, sample, signal, spread = _prepare(prediction, sample, alpha_bar, prediction_type)
    if prediction_type == "epsilon":
        return (sample - spread * prediction) / signal
    return signal * sample - spread * prediction


def to_epsilon(
    prediction: ArrayLike, sample: ArrayLike, alpha_bar: ArrayLike, prediction_type: str
) -> jax.Array:
    """The noise implied by a network's prediction; arguments as in `to_clean`."""
    prediction, sample, signal, spread = _prepare(prediction, sample, alpha_bar, prediction_type)
    if prediction_type == "epsilon":
        return prediction
    return signal * prediction + spread * sample


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
    """Signal and noise rates, shaped to broadcast over the axes after the batch."""
    alpha_bar = jnp.asarray(alphas_cumprod, jnp.float32)[jnp.asarray(timesteps)]
    alpha_bar = alpha_bar.reshape(alpha_bar.shape + (1,) * (ndim - alpha_bar.ndim))
    return jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)


def _linspace(start: float, stop: float, num: int) -> np.ndarray:
    """PyTorch's fp32 linspace: an fp32 step, counted from the nearer end with one rounding."""
    first, last = np.float32(start), np.float32(stop)
    step = np.float64((last - first) / np.float32(max(num - 1, 1)))
    i = np.arange(num)
    return np.where(i < num // 2, first + step * i, last - step * (num - 1 - i)).astype(np.float32)
