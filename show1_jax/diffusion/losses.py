"""Losses of denoisers.

They measure the error of the prediction and of its learned variance. The losses of motion measure
only the differences between frames, so that a network learns how a clip moves, not how it looks.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from show1_jax.diffusion import updates
from show1_jax.diffusion.schedule import (
    PREDICTIONS,
    NoiseSchedule,
    to_clean,
    to_epsilon,
    velocity,
)
from show1_jax.errors import InputError

MOTIONS = ("", "vmc", "deviation")


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss, and the timesteps to train on.

    Attributes:
      schedule: the noise schedule.
      prediction: what the network predicts, "epsilon" or "v".
      timesteps: the first timestep to train on, and one past the last. Expert translation
        trains on (0, 900) only (Show-1, section 3.5).
      shift: factor by which the odds t / (1 - t) of a timestep exceed those of a uniform one
        (Esser et al. 2024, equation 23). Values above 1 train noisier timesteps more often,
        which decide what the text says.
      min_snr: gamma of the min-SNR weighting (arXiv 2303.09556); None weights all timesteps
        equally.
      variance_weight: lambda of the hybrid loss with a learned variance (arXiv
        2102.09672, equation 16; 0.001 there); 0 for networks without a learned variance.
      motion: "vmc": train on `motion_loss` only. "deviation": train on deviations from the mean
        over a clip's frames, so that the network does not learn the look that all frames share
        (like MotionDirector, arXiv 2310.08465, which uses one frame instead of the mean).
        "": train on everything.
    """

    schedule: NoiseSchedule
    prediction: str = "epsilon"
    timesteps: tuple[int, int] = (0, 1000)
    shift: float = 1.0
    min_snr: float | None = None
    variance_weight: float = 0.0
    motion: str = ""

    def __post_init__(self) -> None:
        """Raises InputError if a setting is unknown or out of range."""
        if self.prediction not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise InputError(f"prediction {self.prediction!r} is not one of {known}")
        first, end = self.timesteps
        if not 0 <= first < end <= self.schedule.train_steps:
            raise InputError(
                f"timesteps are {first} to {end}, but must be within 0 to "
                f"{self.schedule.train_steps}"
            )
        if not self.shift > 0:
            raise InputError(f"shift is {self.shift}, but must be more than 0")
        if self.min_snr is not None and not self.min_snr > 0:
            raise InputError(f"min_snr is {self.min_snr}, but must be more than 0, or None")
        if not self.variance_weight >= 0:
            raise InputError(f"variance_weight is {self.variance_weight}, but must be 0 or more")
        if self.motion not in MOTIONS:
            known = ", ".join(repr(name) for name in MOTIONS)
            raise InputError(f"motion {self.motion!r} is not one of {known}")
        if self.motion and (self.min_snr is not None or self.variance_weight):
            raise InputError(
                "motion cannot be combined with min_snr or variance_weight; unset them"
            )


def draw_timesteps(objective: Objective, key: jax.Array, batch: int) -> jax.Array:
    """Draws timesteps within the objective's range, `(batch,)` int32; uniform unless shifted."""
    first, end = objective.timesteps
    uniform = jax.random.uniform(key, (batch,))
    shifted = objective.shift * uniform / (1 + (objective.shift - 1) * uniform)
    return first + jnp.floor(shifted * (end - first)).astype(jnp.int32).clip(0, end - first - 1)


def weights(objective: Objective) -> np.ndarray:
    """Returns the weight of the squared error at each timestep, `(train_steps,)` fp32."""
    alpha_bar = objective.schedule.alphas_cumprod
    if objective.min_snr is None:
        return np.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    # The squared error of v is SNR + 1 times that of the clean sample; that of epsilon, SNR times.
    per_unit = snr + 1 if objective.prediction == "v" else snr
    return np.minimum(snr, objective.min_snr) / per_unit


def diffusion_loss(
    objective: Objective,
    output: jax.Array,
    clean: jax.Array,
    noise: jax.Array,
    noisy: jax.Array,
    timesteps: jax.Array,
) -> jax.Array:
    """Computes the loss of a batch of predictions (DDPM, equation 14; see `Objective`).

    Args:
      objective: the loss.
      output: of the network, `(batch, ..., c)`, or `2 c` channels with a learned variance.
      clean: `(batch, ..., c)`.
      noise: like `clean`.
      noisy: `clean` with `noise` added; see `schedule.add_noise`.
      timesteps: `(batch,)`.

    Returns:
      `(batch,)` fp32.

    Raises:
      InputError: if `variance_weight` is set but the output has no variance, or `motion` is set
        but clips have one frame.
    """
    output = output.astype(jnp.float32)
    prediction, variance = jnp.split(output, [clean.shape[-1]], axis=-1)
    if objective.motion and clean.shape[1] < 2:
        raise InputError("motion needs clips of at least 2 frames")
    if objective.motion == "vmc":
        return motion_loss(objective, prediction, noise, noisy, timesteps)
    alphas = objective.schedule.alphas_cumprod
    target = noise
    if objective.prediction == "v":
        target = velocity(alphas, clean, noise, timesteps)
    if objective.motion == "deviation":
        prediction, target = (x - x.mean(axis=1, keepdims=True) for x in (prediction, target))
    loss = _mean(jnp.square(prediction - target)) * jnp.asarray(weights(objective))[timesteps]
    if not objective.variance_weight:
        return loss
    if variance.shape != clean.shape:
        raise InputError("variance_weight needs a network that outputs twice the sample's channels")
    # Only the variance learns from the bound. The mean learns from the squared error.
    bound = variational_bound(
        objective, jax.lax.stop_gradient(prediction), variance, clean, noisy, timesteps
    )
    return loss + objective.variance_weight * objective.schedule.train_steps * bound


def motion_loss(
    objective: Objective,
    prediction: jax.Array,
    noise: jax.Array,
    noisy: jax.Array,
    timesteps: jax.Array,
) -> jax.Array:
    """Compares how predicted and true noise change between neighbouring frames.

    The loss is one minus the cosine between the two changes (VMC, arXiv 2312.00845, equation 8),
    0 to 2.

    Args:
      objective: gives the schedule and the type of the prediction.
      prediction: `(batch, frames, height, width, c)`.
      noise: like `prediction`.
      noisy: like `prediction`.
      timesteps: `(batch,)`.

    Returns:
      `(batch,)`, the mean over pairs of neighbouring frames.
    """
    alpha_bar = jnp.asarray(objective.schedule.alphas_cumprod)[timesteps]
    shape = (-1,) + (1,) * (noise.ndim - 1)
    predicted = to_epsilon(prediction, noisy, alpha_bar.reshape(shape), objective.prediction)
    one, other = (jnp.diff(x, axis=1).reshape(*x[:, 1:].shape[:2], -1) for x in (predicted, noise))
    # The length of a vector has no derivative at 0, hence 1e-8.
    squares = (jnp.square(one).sum(-1) + 1e-8) * (jnp.square(other).sum(-1) + 1e-8)
    return _mean(1 - (one * other).sum(-1) * jax.lax.rsqrt(squares))


def variational_bound(
    objective: Objective,
    prediction: jax.Array,
    variance: jax.Array,
    clean: jax.Array,
    noisy: jax.Array,
    timesteps: jax.Array,
) -> jax.Array:
    """Computes one timestep's term of the variational bound (DDPM, equation 5).

    Args:
      objective: gives the schedule and the type of the prediction.
      prediction: `(batch, ..., c)`.
      variance: learned variance, about -1 to 1, like `prediction`.
      clean: like `prediction`.
      noisy: like `prediction`.
      timesteps: `(batch,)`.

    Returns:
      `(batch,)`, in bits per dimension.
    """
    now = objective.schedule.alphas_cumprod
    columns = updates.ddpm_coefficients(now, np.append(np.float32(1), now[:-1]))
    # The posterior at timestep 0 has no variance, so that of timestep 1 replaces it.
    small = columns["log_fixed_small"]
    columns["log_fixed_small"] = np.append(small[1], small[1:])
    columns["alpha_bar"] = now
    shape = (-1,) + (1,) * (clean.ndim - 1)
    at = {name: jnp.asarray(column)[timesteps].reshape(shape) for name, column in columns.items()}

    predicted_clean = to_clean(prediction, noisy, at["alpha_bar"], objective.prediction)
    true_mean = updates.ddpm(at, noisy, clean)
    mean = updates.ddpm(at, noisy, predicted_clean)
    log_variance = updates.learned_log_variance(at, variance)
    divergence = _normal_divergence(true_mean, at["log_fixed_small"], mean, log_variance)
    likelihood = discretized_likelihood(clean, mean, log_variance)
    nats = jnp.where(timesteps > 0, _mean(divergence), -_mean(likelihood))
    return nats / np.log(2)


def discretized_likelihood(clean: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """Computes the log likelihood of 8-bit values in [-1, 1] under a Gaussian (DDPM, eq. 13)."""
    deviation = jnp.exp(0.5 * log_variance)
    upper = norm.cdf(clean + 1 / 255, mean, deviation)
    lower = norm.cdf(clean - 1 / 255, mean, deviation)
    upper = jnp.where(clean > 0.999, 1.0, upper)
    lower = jnp.where(clean < -0.999, 0.0, lower)
    return jnp.log(jnp.maximum(upper - lower, 1e-12))


def _normal_divergence(
    mean: jax.Array, log_variance: ArrayLike, other_mean: jax.Array, other: jax.Array
) -> jax.Array:
    """Computes the KL divergence of one Gaussian from another."""
    return 0.5 * (
        other
        - log_variance
        - 1
        + jnp.exp(log_variance - other)
        + jnp.square(mean - other_mean) * jnp.exp(-other)
    )


def _mean(x: jax.Array) -> jax.Array:
    """Averages over all axes except the batch."""
    return x.mean(tuple(range(1, x.ndim)))
