"""The training objectives against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.diffusion.losses import (
    Objective,
    diffusion_loss,
    discretized_likelihood,
    draw_timesteps,
    variational_bound,
    weights,
)
from show1_jax.diffusion.schedule import NoiseSchedule, add_noise, velocity
from show1_jax.errors import InputError

COSINE = NoiseSchedule("cosine")
SHAPE = (3, 2, 4, 5, 3)
TIMESTEPS = jnp.array([0, 400, 999])


@pytest.fixture
def case():
    clean, noise = jax.random.uniform(jax.random.key(0), (2, *SHAPE), minval=-1)
    return clean, noise, add_noise(COSINE.alphas_cumprod, clean, noise, TIMESTEPS)


def test_a_perfect_prediction_costs_nothing(case):
    clean, noise, noisy = case
    for prediction in ("epsilon", "v"):
        objective = Objective(COSINE, prediction)
        target = noise
        if prediction == "v":
            target = velocity(COSINE.alphas_cumprod, clean, noise, TIMESTEPS)
        loss = diffusion_loss(objective, target, clean, noise, noisy, TIMESTEPS)
        np.testing.assert_array_equal(loss, 0)
        loss = diffusion_loss(objective, target + 0.5, clean, noise, noisy, TIMESTEPS)
        np.testing.assert_allclose(loss, 0.25, rtol=1e-5)


def test_min_snr_weighs_epsilon_and_v_alike_in_units_of_the_clean_sample():
    alpha_bar = COSINE.alphas_cumprod.astype(np.float64)
    snr = alpha_bar / (1 - alpha_bar)
    for prediction, unit in (("epsilon", snr), ("v", snr + 1)):
        weight = weights(Objective(COSINE, prediction, min_snr=5.0))
        np.testing.assert_allclose(weight * unit, np.minimum(snr, 5), rtol=1e-4)
    assert (weights(Objective(COSINE)) == 1).all()


def test_the_bound_is_the_divergence_of_the_posterior(case):
    """With the true noise predicted and the small variance learned, nothing is left of it."""
    clean, noise, noisy = case
    objective = Objective(COSINE, variance_weight=0.001)
    smallest = jnp.full(SHAPE, -1.0)
    bound = variational_bound(objective, noise, smallest, clean, noisy, TIMESTEPS)
    assert abs(float(bound[1])) < 1e-4
    largest = jnp.full(SHAPE, 1.0)
    worse = variational_bound(objective, noise, largest, clean, noisy, TIMESTEPS)
    assert float(worse[1]) > float(bound[1])


def bits(betas, t, variance, clean, predicted_noise, noisy):
    """A term of the bound in bits a dimension, as the authors' code has it, in fp64.

    `_vb_terms_bpd` of improved-diffusion's gaussian_diffusion.py, but for the exact normal
    distribution function, which that approximates.
    """
    alpha_bar = np.cumprod(1 - betas)
    before = np.append(1, alpha_bar[:-1])
    posterior = betas * (1 - before) / (1 - alpha_bar)
    smallest, largest = np.log(posterior[max(t, 1)]), np.log(betas[t])
    log_variance = (variance + 1) / 2 * largest + (1 - variance) / 2 * smallest
    predicted = (noisy - np.sqrt(1 - alpha_bar[t]) * predicted_noise) / np.sqrt(alpha_bar[t])
    of_clean = betas[t] * np.sqrt(before[t]) / (1 - alpha_bar[t])
    of_noisy = (1 - before[t]) * np.sqrt(1 - betas[t]) / (1 - alpha_bar[t])
    mean = of_clean * predicted + of_noisy * noisy
    true_mean = of_clean * clean + of_noisy * noisy
    if t > 0:  # the KL divergence of two normal distributions
        ratio, distance = np.exp(smallest - log_variance), np.square(true_mean - mean)
        nats = 0.5 * (log_variance - smallest - 1 + ratio + distance / np.exp(log_variance))
    else:  # of a bin 2 / 255 wide, open at either end
        below, above = (
            (1 + np.vectorize(math.erf)((clean + side - mean) / np.sqrt(2 * np.exp(log_variance))))
            / 2
            for side in (-1 / 255, 1 / 255)
        )
        mass = np.where(clean > 0.999, 1, above) - np.where(clean < -0.999, 0, below)
        nats = -np.log(mass)
    return nats.mean() / np.log(2)


@pytest.mark.parametrize(("train_steps", "variance_weight"), [(1000, 0.1), (250, 0.2)])
def test_the_hybrid_loss_has_the_scale_of_its_authors(train_steps, variance_weight):
    """Squared error and lambda T times bits a dimension (arXiv 2102.09672, equation 16).

    Their code calls it RESCALED_MSE, where lambda is 1 / 1000; here more, so that it shows.
    """
    schedule = NoiseSchedule("linear", train_steps=train_steps)
    objective = Objective(schedule, "epsilon", (0, train_steps), variance_weight=variance_weight)
    betas, rng = np.linspace(1e-4, 0.02, train_steps), np.random.default_rng(0)
    timesteps, shape = np.array([0, 90, train_steps - 1]), (3, 2, 4, 5, 3)
    clean = rng.integers(0, 256, shape) / 127.5 - 1
    clean[:, 0, 0, :2] = [[-1] * 3, [1] * 3]
    noise, variance = rng.normal(size=shape), rng.uniform(-1, 1, shape)
    predicted = noise + 0.3 * rng.normal(size=shape)
    alpha_bar = np.cumprod(1 - betas)[timesteps].reshape(3, 1, 1, 1, 1)
    noisy = np.sqrt(alpha_bar) * clean + np.sqrt(1 - alpha_bar) * noise
    output = np.concatenate([predicted, variance], axis=-1)
    loss = diffusion_loss(
        objective, *(jnp.float32(x) for x in (output, clean, noise, noisy)), jnp.array(timesteps)
    )
    for i, t in enumerate(timesteps):
        bound = bits(betas, t, variance[i], clean[i], predicted[i], noisy[i])
        squared = np.square(predicted[i] - noise[i]).mean()
        expected = squared + variance_weight * train_steps * bound
        assert expected > 1.5 * squared
        np.testing.assert_allclose(loss[i], expected, rtol=2e-3, err_msg=f"timestep {t}")


def test_the_variance_learns_from_the_bound_and_the_mean_does_not(case):
    clean, noise, noisy = case
    objective = Objective(COSINE, variance_weight=0.001)
    plain = Objective(COSINE)

    def total(output, objective):
        return diffusion_loss(objective, output, clean, noise, noisy, TIMESTEPS).sum()

    output = jax.random.normal(jax.random.key(1), (*SHAPE[:-1], 6))
    gradient = jax.grad(total)(output, objective)
    without = jax.grad(total)(output, plain)
    np.testing.assert_allclose(gradient[..., :3], without[..., :3], atol=1e-7)
    assert (without[..., 3:] == 0).all()
    assert jnp.isfinite(gradient).all()
    assert (jnp.abs(gradient[1:, ..., 3:]).max((1, 2, 3, 4)) > 0).all()


def test_likelihoods_of_all_values_sum_to_one():
    values = jnp.linspace(-1, 1, 256)
    total = jnp.exp(discretized_likelihood(values, jnp.float32(0.3), jnp.float32(-4.0))).sum()
    np.testing.assert_allclose(total, 1, rtol=1e-3)


def test_timesteps_stay_in_their_range():
    objective = Objective(COSINE, timesteps=(100, 103))
    drawn = draw_timesteps(objective, jax.random.key(0), 200)
    assert set(np.asarray(drawn).tolist()) == {100, 101, 102}


def test_shifted_timesteps_are_noisier():
    drawn = [
        np.asarray(draw_timesteps(Objective(COSINE, shift=shift), jax.random.key(0), 10_000))
        for shift in (1.0, 3.0)
    ]
    # Uniform, and with three times the odds: a half becomes three quarters.
    for each, median in zip(drawn, (500, 750), strict=True):
        assert each.min() >= 0
        assert each.max() < 1000
        assert abs(np.median(each) - median) < 15


def test_bad_settings(case):
    with pytest.raises(InputError, match="within 0 to 1000"):
        Objective(COSINE, timesteps=(0, 1001))
    with pytest.raises(InputError, match="'x0' is not one of"):
        Objective(COSINE, "x0")
    clean, noise, noisy = case
    with pytest.raises(InputError, match="twice the sample's channels"):
        diffusion_loss(
            Objective(COSINE, variance_weight=0.001), noise, clean, noise, noisy, TIMESTEPS
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_snr": 0.0}, "min_snr is 0.0, but must be more than 0, or None"),
        ({"min_snr": float("nan")}, "min_snr is nan"),
        ({"shift": 0.0}, "shift is 0.0, but must be more than 0"),
        ({"variance_weight": -1.0}, "variance_weight is -1.0, but must be 0 or more"),
    ],
)
def test_weights_that_would_teach_the_opposite_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Objective(NoiseSchedule("cosine"), **settings)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_motion_is_what_changes_between_frames(prediction):
    schedule = NoiseSchedule("cosine")
    objective = Objective(schedule, prediction, motion="vmc")
    rng = np.random.default_rng(0)
    clean, noise = (rng.normal(size=(2, 4, 5, 6, 3)).astype(np.float32) for _ in range(2))
    timesteps = jnp.array([400, 700])
    alphas = schedule.alphas_cumprod
    noisy = add_noise(alphas, clean, noise, timesteps)

    def loss(predicted_noise):
        output = predicted_noise
        if prediction == "v":  # of the clean sample that such noise would leave
            alpha = alphas[np.asarray(timesteps)].reshape(2, 1, 1, 1, 1)
            implied = (noisy - np.sqrt(1 - alpha) * predicted_noise) / np.sqrt(alpha)
            output = velocity(alphas, implied, predicted_noise, timesteps)
        return np.asarray(diffusion_loss(objective, output, clean, noise, noisy, timesteps))

    still = rng.normal(size=(2, 1, 5, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(loss(noise), 0, atol=1e-4)
    np.testing.assert_allclose(loss(3 * noise + still), 0, atol=1e-4)
    np.testing.assert_allclose(loss(-noise), 2, atol=1e-4)
    others = rng.normal(size=noise.shape).astype(np.float32)
    assert (abs(loss(others) - 1) < 0.3).all()
    with pytest.raises(InputError, match="2 frames"):
        diffusion_loss(objective, *(x[:, :1] for x in (noise, clean, noise, noisy)), timesteps)


def test_what_all_frames_share_is_no_deviation():
    schedule = NoiseSchedule("cosine")
    objective = Objective(schedule, "v", motion="deviation")
    rng = np.random.default_rng(0)
    clean, noise, other = (rng.normal(size=(2, 4, 5, 6, 3)).astype(np.float32) for _ in range(3))
    timesteps = jnp.array([400, 700])
    noisy = add_noise(schedule.alphas_cumprod, clean, noise, timesteps)
    target = velocity(schedule.alphas_cumprod, clean, noise, timesteps)

    def loss(output):
        return np.asarray(diffusion_loss(objective, output, clean, noise, noisy, timesteps))

    still = rng.normal(size=(2, 1, 5, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(loss(target + still), 0, atol=1e-6)
    deviation = other - other.mean(axis=1, keepdims=True)
    expected = np.square(deviation).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(loss(target + other), expected, rtol=1e-4)
    with pytest.raises(InputError, match="2 frames"):
        diffusion_loss(objective, *(x[:, :1] for x in (noise, clean, noise, noisy)), timesteps)
    with pytest.raises(InputError, match="motion 'cosine' is not one of '', 'vmc', 'deviation'"):
        Objective(schedule, motion="cosine")
