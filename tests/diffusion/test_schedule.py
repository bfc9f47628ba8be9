import dataclasses

import jax
import numpy as np
import pytest

from show1_jax.diffusion.schedule import NoiseSchedule, add_noise, to_clean, to_epsilon, velocity
from show1_jax.errors import InputError
from tests.conftest import assert_close, golden

COSINE = NoiseSchedule("cosine")
LATENT = NoiseSchedule("scaled_linear", 0.00085, 0.012)


@pytest.mark.parametrize(
    ("schedule", "case"),
    [(COSINE, "sched_add_noise"), (COSINE, "sched_ddpm_max1p5"), (LATENT, "sched_ddim")],
)
def test_alphas_are_those_of_the_original_to_the_bit(schedule, case):
    recorded = golden(case).outputs
    np.testing.assert_array_equal(schedule.alphas_cumprod, recorded["alphas_cumprod"])
    if "betas" in recorded:
        np.testing.assert_array_equal(schedule.betas, recorded["betas"])


def test_linear_betas_end_where_asked():
    betas = NoiseSchedule("linear", 1e-4, 0.02, train_steps=10).betas
    np.testing.assert_allclose(betas, np.linspace(1e-4, 0.02, 10), rtol=1e-6)
    assert betas.dtype == np.float32


def test_add_noise_takes_one_timestep_per_batch_element():
    case = golden("sched_add_noise")
    clean, noise = (np.moveaxis(case.inputs[k], 1, -1) for k in ("original", "noise"))
    noisy = jax.jit(add_noise)(COSINE.alphas_cumprod, clean, noise, case.inputs["timesteps"])
    assert_close(np.moveaxis(noisy, -1, 1), case.outputs["noisy"], 1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_true_prediction_gives_back_clean_sample_and_noise(prediction):
    clean, noise = np.random.default_rng(0).normal(size=(2, 3, 2, 4, 5, 3)).astype(np.float32)
    timesteps, alphas = np.array([10, 400, 700]), COSINE.alphas_cumprod
    noisy = add_noise(alphas, clean, noise, timesteps)
    target = noise if prediction == "epsilon" else velocity(alphas, clean, noise, timesteps)
    alpha_bar = alphas[timesteps].reshape(3, 1, 1, 1, 1)
    np.testing.assert_allclose(
        to_clean(target, noisy, alpha_bar, prediction), clean, rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        to_epsilon(target, noisy, alpha_bar, prediction), noise, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "change", [{"kind": "sigmoid"}, {"train_steps": 0}, {"beta_start": 0.0}, {"beta_end": 1.0}]
)
def test_impossible_schedules_are_refused(change):
    with pytest.raises(InputError):
        dataclasses.replace(LATENT, **change)


def test_unknown_prediction_is_refused():
    with pytest.raises(InputError, match="epsilon, v"):
        to_clean(np.ones(3), np.ones(3), 0.5, "sample")
