import json

import numpy as np
import pytest

from show1_jax.checkpoints.scheduler_config import scheduler_json, solver_config
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import SolverConfig
from show1_jax.errors import InputError
from tests.conftest import RELEASE

COSINE = NoiseSchedule("cosine")
KEYFRAMES = SolverConfig(
    "dpm_solver",
    COSINE,
    spacing="linspace",
    threshold=0.95,
    threshold_max=1.5,
    lambda_min_clipped=-5.1,
)
LATENT = SolverConfig(
    "dpm_solver",
    NoiseSchedule("scaled_linear", 0.00085, 0.012),
    spacing="linspace",
    steps_offset=1,
)
# As the Hub has it, with what other scheduler classes left behind.
RELEASED_LATENT = """{
  "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.19.3",
  "algorithm_type": "dpmsolver++", "beta_end": 0.012, "beta_schedule": "scaled_linear",
  "beta_start": 0.00085, "clip_sample": false, "clip_sample_range": 1.0,
  "dynamic_thresholding_ratio": 0.995, "lambda_min_clipped": -Infinity,
  "lower_order_final": true, "num_train_timesteps": 1000, "prediction_type": "epsilon",
  "sample_max_value": 1.0, "set_alpha_to_one": false, "skip_prk_steps": true,
  "solver_order": 2, "solver_type": "midpoint", "steps_offset": 1, "thresholding": false,
  "timestep_spacing": "linspace", "trained_betas": null, "use_karras_sigmas": false,
  "variance_type": null
}"""


def read(folder):
    return json.loads((RELEASE / folder / "scheduler_config.json").read_text())


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("show-1-base/scheduler", KEYFRAMES),
        ("show-1-interpolation/scheduler", KEYFRAMES),
        ("show-1-sr2/scheduler", LATENT),
        ("show-1-sr1/image_noising_scheduler", SolverConfig("ddpm", COSINE, clip=1.0)),
        (
            "IF-II-L-v1.0/scheduler",
            SolverConfig("ddpm", COSINE, threshold=0.95, variance="learned_range"),
        ),
    ],
)
def test_released_files(folder, expected):
    assert solver_config(read(folder), folder) == expected


def test_settings_of_other_classes_are_ignored():
    assert solver_config(json.loads(RELEASED_LATENT), "sr2") == LATENT


def test_absent_keys_have_the_defaults_of_their_class():
    linear = NoiseSchedule("linear", 1e-4, 0.02)
    for name, expected in (
        ("DDPMScheduler", SolverConfig("ddpm", linear, clip=1.0)),
        ("DDIMScheduler", SolverConfig("ddim", linear, clip=1.0)),
        ("DPMSolverMultistepScheduler", SolverConfig("dpm_solver", linear, spacing="linspace")),
    ):
        assert solver_config({"_class_name": name}, name) == expected


@pytest.mark.parametrize(
    "config",
    [
        KEYFRAMES,
        LATENT,
        SolverConfig("dpm_solver", COSINE, order=1, lower_order_final=False, prediction="v"),
        SolverConfig("ddim", COSINE, set_alpha_to_one=False, spacing="trailing"),
        SolverConfig("ddim", COSINE, clip=2.0, steps_offset=1),
        SolverConfig("ddpm", COSINE, threshold=0.95, variance="learned_range"),
        SolverConfig("ddpm", NoiseSchedule("linear", train_steps=50), variance="fixed_large"),
    ],
)
def test_written_files_read_back(config):
    text = json.dumps(scheduler_json(config))
    assert solver_config(json.loads(text), "round trip") == config


@pytest.mark.parametrize("folder", ["show-1-base/scheduler", "IF-II-L-v1.0/scheduler"])
def test_written_files_say_what_the_released_ones_say(folder):
    released = read(folder)
    written = scheduler_json(solver_config(released, folder))
    for key in written.keys() & released.keys() - {"clip_sample"}:  # moot under thresholding
        assert written[key] == released[key], key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
        ({"final_sigmas_type": "zero"}, "final_sigmas_type"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ({"solver_type": "heun"}, "solver_type"),
        ({"solver_order": 3}, "solver_order"),
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"beta_start": "small"}, "beta_start"),
        ({"timestep_spacing": "karras"}, "timestep_spacing"),
    ],
)
def test_what_is_not_implemented_is_named(change, message):
    with pytest.raises(InputError, match=message) as error:
        solver_config(json.loads(RELEASED_LATENT) | change, "some/file.json")
    assert str(error.value).startswith("some/file.json: ")
    assert "\n" not in str(error.value)


def test_a_clipping_dpm_solver_cannot_be_written():
    with pytest.raises(InputError, match="clip"):
        scheduler_json(SolverConfig("dpm_solver", COSINE, clip=1.0))


def test_numbers_survive_as_plain_json():
    written = scheduler_json(LATENT)
    assert json.loads(json.dumps(written))["lambda_min_clipped"] == -np.inf
