"""Whole stages against recordings of the original pipelines, with their noise injected."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from show1_jax.checkpoints.scheduler_config import solver_config
from show1_jax.convert import load_diffusers
from show1_jax.diffusion.schedule import add_noise
from show1_jax.diffusion.solvers import make_solver
from show1_jax.media import from_uint8, to_uint8
from show1_jax.stages import interpolation, translation, upscaling
from show1_jax.stages.sampling import Conditions, Sampler, Steering, denoise
from tests.conftest import Golden, assert_close, golden, network_folder

# Of each stage one trajectory is walked by default: networks and solvers have recordings of their
# own.
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@functools.cache
def load(name: str):
    return load_diffusers(network_folder(name))


def last(x: np.ndarray) -> np.ndarray:
    """Channel-first, as recorded, to channels last; an image becomes a clip of one frame."""
    x = np.moveaxis(x, 1, -1)
    return x if x.ndim == 5 else x[:, None]


def unfold(x: np.ndarray, batch: int) -> np.ndarray:
    """Recorded with frames folded into the batch, `(B F) C H W`, to `B F H W C`."""
    return rearrange(x, "(b f) c h w -> b f h w c", b=batch)


def setup(case: Golden) -> tuple[Sampler, dict]:
    module, params = load(case.meta["weights_from"]["unet"])
    scheduler = solver_config(case.config["scheduler"], "golden")
    steps = case.config["call"]["num_inference_steps"]
    return Sampler(module, make_solver(scheduler, steps)), params


def conditions(case: Golden, **more) -> Conditions:
    text = np.stack([case.inputs["negative_prompt_embeds"], case.inputs["prompt_embeds"]])
    return Conditions(jnp.asarray(text), **more)


def steering(case: Golden, rows: int) -> Steering:
    keys = jax.vmap(jax.random.key)(jnp.zeros(rows, jnp.uint32))
    return Steering(jnp.float32(case.config["call"]["guidance_scale"]), keys)


def check(case: Golden, sampler, params, start, told, first_step: int = 0, whole: bool = False):
    """Runs the loop step by step; `whole`, in one go as well."""
    batch = len(start)
    steered = steering(case, told.text.shape[1])
    recorded = {k: v for k, v in case.inputs.items() if k.startswith("noise.variance.")}
    noise = None
    if recorded:
        steps = [unfold(recorded[f"noise.variance.step{i}"], batch) for i in range(len(recorded))]
        # The last step, at timestep 0, draws none.
        stacked = jnp.asarray(np.stack([*steps, np.zeros_like(steps[0])]))

        def noise(step):
            return stacked[step]

    run = jax.jit(
        lambda state, begin, end: denoise(
            sampler, params, state, told, steered, (begin, end), step_noise=noise
        )
    )
    state = sampler.solver.init(start)
    for i in range(sampler.solver.num_steps - first_step):
        state = run(state, first_step + i, first_step + i + 1)
        name = f"sample.step{i}"
        assert_trajectory(case, name, state.sample)
    if whole:
        ended = run(sampler.solver.init(start), first_step, sampler.solver.num_steps)
        np.testing.assert_allclose(ended.sample, state.sample, atol=1e-5)
    return state.sample


def assert_trajectory(case: Golden, name: str, actual) -> None:
    expected = last(case.outputs[name])
    allowed = max(1e-4, 5 * case.meta["fp32_minus_fp64_max_abs"][name])
    error = np.abs(np.asarray(actual, np.float64) - expected).max()
    assert error <= allowed, f"{case.folder.name} {name}: {error:.2e} > {allowed:.1e}"


def assert_uint8(case: Golden, video) -> None:
    """`final_uint8` holds the clips of a batch side by side."""
    ours = rearrange(to_uint8(np.asarray(video)), "b f h w c -> f h (b w) c")
    assert np.abs(ours.astype(int) - case.outputs["final_uint8"]).max() <= 1


@pytest.mark.parametrize("name", ["pipe_base", slow("pipe_base_dpmpp")])
def test_keyframes(name):
    case = golden(name)
    sampler, params = setup(case)
    start, told = last(case.inputs["noise.init"]), conditions(case)
    sample = check(case, sampler, params, start, told, whole=True)
    assert_uint8(case, sample)


@pytest.mark.parametrize("name", [slow("pipe_interp"), "pipe_interp_dpmpp"])
def test_interpolation(name):
    case = golden(name)
    sampler, params = setup(case)
    keyframes = last(case.inputs["pixel_values"])[:, [0, -1]]
    frames = interpolation.condition(keyframes, case.config["call"]["num_frames"])
    recorded = last(case.outputs["unet_input.step0"])[:1, ..., 3:]
    assert_close(frames, recorded, 1e-6)
    told = conditions(case, frames=frames)
    sample = check(case, sampler, params, last(case.inputs["init_noise"]), told)
    assert_uint8(case, sample)


@pytest.mark.parametrize("name", ["pipe_if_sr", slow("pipe_sr1_cond"), "pipe_sr1_cond_dpmpp"])
def test_super_resolution(name):
    case = golden(name)
    sampler, params = setup(case)
    call = case.config["call"]
    small, noise = last(case.inputs["image"]), last(case.inputs["noise.augmentation"])
    schedule = solver_config(case.config["image_noising_scheduler"], "golden").schedule
    level = jnp.full(len(small), call["noise_level"])
    upsampled = upscaling.upsample(small, call["height"], call["width"])
    assert_close(upsampled, last(case.outputs["add_noise.original"]), 1e-5)
    frames = upscaling.augment(upsampled, noise, level, schedule)
    assert_close(frames, last(case.outputs["add_noise.noisy"]), 1e-5)
    if "first_frame_cond" in case.inputs:
        first = last(case.inputs["first_frame_cond"])[:, 0]
        frames = upscaling.with_first_frame(frames, first)
    told = conditions(case, frames=frames, noise_level=level)
    recorded = last(case.outputs["unet_input.step0"])[: len(small), ..., 3:]
    assert_close(frames, recorded, 1e-5)
    sample = check(case, sampler, params, last(case.inputs["noise.init"]), told)
    if "final_uint8" in case.outputs:
        assert_uint8(case, sample)


@pytest.mark.parametrize(
    "name", [slow("pipe_latent_dpmpp"), "pipe_sr2_dpmpp", slow("pipe_sr2_ddim")]
)
def test_translation(name):
    case = golden(name)
    sampler, params = setup(case)
    vae, vae_params = load(case.meta["weights_from"]["vae"])
    video = jnp.asarray(from_uint8(case.inputs["video_uint8"]))[None]
    mean, logvar = translation.encode(vae, vae_params, video, 2)
    assert_close(mean, unfold(case.outputs["vae_mean"], 1), 2e-5)
    assert_close(logvar, unfold(case.outputs["vae_logvar"], 1), 2e-5)
    posterior = unfold(case.inputs["noise.vae_posterior"], 1)
    latents = translation.to_latents(vae, mean, logvar, posterior)
    assert_close(latents, unfold(case.outputs["add_noise.original"], 1), 2e-5)

    solver = sampler.solver
    first = solver.first_step(case.config["call"]["strength"])
    timestep = solver.timesteps[first]
    assert timestep == case.outputs["add_noise.timesteps"][0]
    start = add_noise(
        jnp.asarray(solver.config.schedule.alphas_cumprod),
        latents,
        unfold(case.inputs["noise.add_noise"], 1),
        jnp.full(1, timestep),
    )
    assert_close(start, unfold(case.outputs["add_noise.noisy"], 1), 2e-5)
    sample = check(case, sampler, params, start, conditions(case), first)
    final = translation.decode(vae, vae_params, sample, 2)
    assert_trajectory(case, "final", final)
    assert_uint8(case, final)
