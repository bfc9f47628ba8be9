"""Converts the released `scheduler_config.json` to a solver configuration, and back.

Missing keys have the defaults of diffusers 0.19.3.
"""

from collections.abc import Mapping
from typing import Any

from show1_jax.checkpoints.fields import Fields
from show1_jax.checkpoints.network_config import MAX_SIZE, number, size
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import SPACINGS, VARIANCES, SolverConfig
from show1_jax.errors import InputError

KINDS = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm_solver",
}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}

# Files keep settings of other scheduler classes. A class ignores settings that it does not have.
MEANINGLESS = {
    "ddpm": ("lambda_min_clipped", "set_alpha_to_one", "skip_prk_steps"),
    "ddim": ("lambda_min_clipped", "skip_prk_steps", "variance_type"),
    "dpm_solver": ("clip_sample", "clip_sample_range", "set_alpha_to_one", "skip_prk_steps"),
}


def solver_config(config: Mapping[str, Any], where: str) -> SolverConfig:
    """Reads a scheduler's configuration.

    Args:
      config: the parsed `scheduler_config.json`.
      where: its name in error messages.

    Raises:
      InputError: if the scheduler class or a key is unknown, or a value is not implemented.
    """
    name = config.get("_class_name")
    if name not in tuple(KINDS):
        raise InputError(f"{where}: scheduler {name!r} is not one of {', '.join(KINDS)}")
    kind = KINDS[name]
    fields = Fields(config, where)
    fields.expect(trained_betas=None)
    schedule = NoiseSchedule(
        kind=BETAS[fields.choice("beta_schedule", "linear", BETAS)],
        beta_start=number(fields, "beta_start", 1e-4),
        beta_end=number(fields, "beta_end", 0.02),
        train_steps=size(fields, "num_train_timesteps", 1000),
    )
    thresholding = fields.choice("thresholding", False, (True, False))
    ratio = number(fields, "dynamic_thresholding_ratio", 0.995)
    maximum = number(fields, "sample_max_value", 1.0)
    settings: dict[str, Any] = {
        "prediction": PREDICTIONS[fields.choice("prediction_type", "epsilon", PREDICTIONS)],
        "steps_offset": int(number(fields, "steps_offset", 0, 0, MAX_SIZE)),
        "spacing": fields.choice(
            "timestep_spacing", "linspace" if kind == "dpm_solver" else "leading", SPACINGS
        ),
    }
    if thresholding:
        settings |= {"threshold": ratio, "threshold_max": maximum}
    if kind == "dpm_solver":
        fields.expect(
            algorithm_type="dpmsolver++", solver_type="midpoint", use_karras_sigmas=(False, None)
        )
        # DPM-Solver ignores a learned variance, so its type does not matter.
        fields.choice("variance_type", None, (None, *VARIANCES))
        settings["order"] = fields.choice("solver_order", 2, (1, 2))
        settings["lower_order_final"] = fields.choice("lower_order_final", True, (True, False))
        nothing = -float("inf")
        settings["lambda_min_clipped"] = number(fields, "lambda_min_clipped", nothing, nothing)
    else:
        bound = number(fields, "clip_sample_range", 1.0)
        # If both are set, thresholding wins.
        if fields.choice("clip_sample", True, (True, False)) and not thresholding:
            settings["clip"] = bound
    if kind == "ddpm":
        settings["variance"] = fields.choice("variance_type", "fixed_small", VARIANCES)
    elif kind == "ddim":
        fields.expect(rescale_betas_zero_snr=False)
        settings["set_alpha_to_one"] = fields.choice("set_alpha_to_one", True, (True, False))
    fields.ignore(*MEANINGLESS[kind])
    fields.done()
    return SolverConfig(kind=kind, schedule=schedule, **settings)


def scheduler_json(config: SolverConfig) -> dict[str, Any]:
    """Returns the `scheduler_config.json` of a solver, which `solver_config` reads.

    Raises:
      InputError: for a DPM-Solver that clips, which the format cannot express.
    """
    schedule = config.schedule
    written: dict[str, Any] = {
        "_class_name": _inverse(KINDS)[config.kind],
        "_diffusers_version": "0.19.3",
        "beta_end": schedule.beta_end,
        "beta_schedule": _inverse(BETAS)[schedule.kind],
        "beta_start": schedule.beta_start,
        "num_train_timesteps": schedule.train_steps,
        "prediction_type": _inverse(PREDICTIONS)[config.prediction],
        "steps_offset": config.steps_offset,
        "thresholding": config.threshold is not None,
        "timestep_spacing": config.spacing,
        "trained_betas": None,
    }
    if config.threshold is not None:
        written["dynamic_thresholding_ratio"] = config.threshold
        written["sample_max_value"] = config.threshold_max
    if config.kind == "dpm_solver":
        if config.clip is not None:
            raise InputError(
                "a released DPM-Solver configuration cannot clip; set threshold instead of clip"
            )
        written |= {
            "algorithm_type": "dpmsolver++",
            "lambda_min_clipped": config.lambda_min_clipped,
            "lower_order_final": config.lower_order_final,
            "solver_order": config.order,
            "solver_type": "midpoint",
            "use_karras_sigmas": False,
            # Makes the pixel pipelines drop the learned variance before the solver.
            "variance_type": "fixed_small",
        }
        return written
    written["clip_sample"] = config.clip is not None
    if config.clip is not None:
        written["clip_sample_range"] = config.clip
    if config.kind == "ddpm":
        written["variance_type"] = config.variance
    else:
        written["set_alpha_to_one"] = config.set_alpha_to_one
    return written


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}
