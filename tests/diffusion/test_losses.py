"""The training objectives against closed forms."""

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
    with pytest.raises(InputError, match="motion is 'cosine', not one of '', 'vmc', 'deviation'"):
        Objective(schedule, motion="cosine")
