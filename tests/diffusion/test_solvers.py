import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.checkpoints.scheduler_config import solver_config
from show1_jax.diffusion import rules
from show1_jax.diffusion.guidance import guide
from show1_jax.diffusion.schedule import NoiseSchedule, add_noise
from show1_jax.diffusion.solvers import SolverConfig, make_solver
from show1_jax.diffusion.updates import ddim
from show1_jax.errors import InputError
from tests.conftest import assert_close, golden

COSINE = NoiseSchedule("cosine")
LATENT = NoiseSchedule("scaled_linear", 0.00085, 0.012)
PIXEL = SolverConfig("dpm_solver", COSINE, spacing="linspace", threshold=0.95, threshold_max=1.5)
IMAGE = SolverConfig("ddpm", COSINE, threshold=0.95, threshold_max=1.5, variance="learned_range")
TOLERANCE = 1e-5


def channels_last(array):
    return np.moveaxis(array, -3, -1)


@functools.partial(jax.jit, static_argnums=0)
def trajectory(solver, first, count, noisy, outputs):
    """The samples after each step, `outputs[k]` being that of the k-th executed step."""

    def body(k, carry):
        state, samples = carry
        state = solver.step(state, first + k, outputs[k])
        return state, samples.at[k].set(state.sample)

    samples = jnp.zeros((len(outputs), *noisy.shape))
    return jax.lax.fori_loop(0, count, body, (solver.init(noisy), samples))[1]


def check_run(case, name, noisy, first):
    run = case.config["runs"][name]
    config = solver_config(run["scheduler"], name)
    solver = make_solver(config, run["num_inference_steps"])
    np.testing.assert_array_equal(solver.timesteps[first:], case.outputs[f"{name}.timesteps"])
    count = solver.num_steps - first
    outputs = channels_last(case.inputs["model_outputs"])
    samples = trajectory(solver, first, count, channels_last(noisy), outputs)
    for k in range(count):
        expected = channels_last(case.outputs[f"{name}.sample.step{k:02}"])
        assert_close(samples[k], expected, TOLERANCE, f"{name} step {k}")


@pytest.mark.parametrize(
    ("recording", "name"),
    [
        (recording, name)
        for recording in ("sched_ddim", "sched_dpmpp")
        for name in golden(recording).config["runs"]
    ],
)
def test_latent_trajectories(recording, name):
    case = golden(recording)
    run = case.config["runs"][name]
    config = solver_config(run["scheduler"], name)
    solver = make_solver(config, run["num_inference_steps"])
    np.testing.assert_array_equal(solver.timesteps, case.outputs[f"{name}.all_timesteps"])
    first = solver.first_step(run["strength"])
    noisy = add_noise(
        config.schedule.alphas_cumprod,
        case.inputs["x0"],
        case.inputs["noise"],
        solver.timesteps[first],
    )
    assert_close(noisy, case.outputs[f"{name}.noisy"], 1e-6)
    check_run(case, name, case.outputs[f"{name}.noisy"], first)


@pytest.mark.parametrize("name", golden("sched_dpmpp_pixel").config["runs"])
def test_pixel_trajectories(name):
    case = golden("sched_dpmpp_pixel")
    check_run(case, name, case.inputs["x_T"], 0)


@pytest.mark.parametrize("steps", [75, 125])
@pytest.mark.parametrize("name", ["clip", "noclip"])
def test_released_timesteps(name, steps):
    lowest = -5.1 if name == "clip" else -float("inf")
    solver = make_solver(dataclasses.replace(PIXEL, lambda_min_clipped=lowest), steps)
    released = golden("sched_dpmpp_pixel").config["released_timesteps"]
    assert solver.timesteps.tolist() == released[f"{name}.{steps}"]


@pytest.mark.parametrize("name", ["sched_ddpm_max1p0", "sched_ddpm_max1p5"])
def test_ddpm_steps(name):
    case = golden(name)
    config = solver_config(case.config["scheduler"], name)
    for n in case.config["num_inference_steps"]:
        solver = make_solver(config, n)
        np.testing.assert_array_equal(solver.timesteps, case.outputs[f"timesteps.n{n}"])
        step = jax.jit(solver.step)
        for i in case.config["step_indices"][str(n)]:
            key = f"n{n}.i{i}"
            x, output, noise = (
                channels_last(case.inputs[f"{key}.{part}"])
                for part in ("x_t", "model_output", "variance_noise")
            )
            state = step(solver.init(x), i, output, noise)
            clean, sample = (
                channels_last(case.outputs[f"{key}.{part}"]) for part in ("pred_x0", "prev_sample")
            )
            assert_close(state.clean, clean, TOLERANCE, key)
            assert_close(state.sample, sample, TOLERANCE, key)


# --- behaviour ------------------------------------------------------------------


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_last_ddpm_step_returns_the_thresholded_clean_sample():
    solver = make_solver(IMAGE, 7)
    # Variance channels this large overflow, which timestep 0 must not notice.
    output = draw(1, 1, 4, 5, 6) * 100
    state = solver.step(solver.init(draw(0, 1, 4, 5, 3)), 6, output, draw(2, 1, 4, 5, 3))
    np.testing.assert_array_equal(state.sample, state.clean)
    assert np.abs(state.sample).max() <= 1


@pytest.mark.parametrize(
    "config",
    [
        IMAGE,
        SolverConfig("ddpm", COSINE, clip=1.0),
        SolverConfig("ddim", LATENT, set_alpha_to_one=False, steps_offset=1),
        SolverConfig("dpm_solver", LATENT, spacing="linspace", prediction="v"),
        PIXEL,
    ],
)
def test_strength_and_guidance_do_not_recompile(config):
    solver = make_solver(config, 10)
    traces = []

    @jax.jit
    def sample(noisy, outputs, first, scale):
        traces.append(first)

        def body(i, state):
            output = guide(outputs[0], outputs[1], scale, channels=3)
            return solver.step(state, i, output, noisy if solver.needs_noise else None)

        return jax.lax.fori_loop(first, solver.num_steps, body, solver.init(noisy))

    noisy, outputs = draw(0, 2, 3, 4, 5, 3), draw(1, 2, 2, 3, 4, 5, 6)
    results = [
        sample(noisy, outputs, solver.first_step(strength), scale)
        for strength, scale in ((1.0, 4.0), (0.8, 4.0), (0.8, 9.0))
    ]
    assert len(traces) == 1
    assert [int(r.taken) for r in results] == [10, 8, 8]
    assert all(np.isfinite(r.sample).all() for r in results)
    assert not np.allclose(results[1].sample, results[2].sample)


def test_any_leading_axes_give_the_same_frames():
    solver = make_solver(PIXEL, 5)
    noisy, output = draw(0, 2, 3, 4, 5, 3), draw(1, 2, 3, 4, 5, 3)
    video = solver.step(solver.init(noisy), 0, output).sample
    folded = solver.step(solver.init(noisy.reshape(6, 4, 5, 3)), 0, output.reshape(6, 4, 5, 3))
    np.testing.assert_allclose(video.reshape(6, 4, 5, 3), folded.sample, rtol=1e-6, atol=1e-6)


def test_variance_channels_are_dropped_where_nobody_reads_them():
    noisy, output = draw(0, 1, 4, 5, 3), draw(1, 1, 4, 5, 6)
    for config in (PIXEL, SolverConfig("ddpm", COSINE), SolverConfig("ddim", COSINE)):
        solver = make_solver(config, 5)
        noise = draw(2, 1, 4, 5, 3)
        both = [solver.step(solver.init(noisy), 2, o, noise) for o in (output, output[..., :3])]
        np.testing.assert_array_equal(both[0].sample, both[1].sample)


def test_a_perfect_network_leads_back_to_the_clean_sample():
    clean = np.clip(draw(0, 1, 4, 5, 3), -1, 1)
    for config in (PIXEL, SolverConfig("ddim", COSINE, clip=1.0)):
        solver = make_solver(config, 20)
        alphas = config.schedule.alphas_cumprod
        state = solver.init(add_noise(alphas, clean, draw(1, 1, 4, 5, 3), solver.timesteps[0]))
        for i, t in enumerate(solver.timesteps):
            epsilon = (state.sample - np.sqrt(alphas[t]) * clean) / np.sqrt(1 - alphas[t])
            state = solver.step(state, i, epsilon)
        np.testing.assert_allclose(state.sample, clean, atol=0.03)


def test_ddim_inverts_itself():
    clean, epsilon = draw(0, 1, 4, 5, 3), draw(1, 1, 4, 5, 3)
    noisier = ddim(clean, epsilon, 0.2)
    np.testing.assert_allclose(noisier, add_noise(np.array([0.2]), clean, epsilon, 0), atol=1e-6)
    np.testing.assert_allclose(ddim(clean, epsilon, 1.0), clean, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "strength"),
    [(50, 0.8), (20, 0.7), (10, 0.3), (100, 0.29), (6, 0.8), (7, 1), (7, 1.0)],
)
def test_strength_counts_steps_as_python_does(steps, strength):
    assert make_solver(PIXEL, steps).first_step(strength) == steps - int(steps * strength)


def test_a_traced_strength_is_clamped():
    first = jax.jit(make_solver(PIXEL, 50).first_step)
    assert [int(first(s)) for s in (0.8, 0.5, 1.0, 2.0, 0.0, -1.0)] == [10, 25, 0, 0, 50, 50]


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.5, 0.01])
def test_a_strength_that_leaves_no_step_is_refused(strength):
    with pytest.raises(InputError, match=r"0\.02 to 1"):
        make_solver(PIXEL, 50).first_step(strength)


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(InputError, match="1 to 1000"):
        make_solver(IMAGE, steps)


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (PIXEL, 1000),
        (dataclasses.replace(PIXEL, spacing="leading"), 1000),
        (dataclasses.replace(IMAGE, steps_offset=1), 1000),
    ],
)
def test_steps_that_would_repeat_or_overrun_are_refused(config, steps):
    with pytest.raises(InputError, match="use fewer"):
        make_solver(config, steps)


@pytest.mark.parametrize("config", [IMAGE, PIXEL, SolverConfig("ddim", LATENT)])
def test_trailing_always_starts_at_the_end_and_has_every_step(config):
    config = dataclasses.replace(config, spacing="trailing")
    for steps in (1, 7, 61, 103, 1000):  # at 61 and 103 a division leaves a rest
        timesteps = make_solver(config, steps).timesteps
        assert timesteps[0] == 999
        assert len(timesteps) == steps
        assert timesteps[-1] >= 0


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "euler"},
        {"prediction": "sample"},
        {"spacing": "karras"},
        {"variance": "learned"},
        {"order": 3},
        {"clip": 1.0},
        {"threshold": None, "clip": 0.0},
        {"threshold": 95.0},
        {"threshold_max": 0.5},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(InputError):
        dataclasses.replace(PIXEL, **change)


def test_missing_noise_and_missing_variance_are_refused():
    solver = make_solver(IMAGE, 5)
    state = solver.init(draw(0, 1, 4, 5, 3))
    with pytest.raises(ValueError, match="noise"):
        solver.step(state, 0, draw(1, 1, 4, 5, 6))
    with pytest.raises(ValueError, match="variance"):
        solver.step(state, 0, draw(1, 1, 4, 5, 3), draw(1, 1, 4, 5, 3))


class Euler:
    """A solver of one's own: straight ahead in sample / signal rate over noise / signal rate."""

    needs_noise, to_next = False, True

    def coefficients(self, config, timesteps, stride):
        alpha_bar = config.schedule.alphas_cumprod
        return {"then": alpha_bar[np.append(timesteps[1:], 0)]}

    def step(self, step):
        now, then = step.at["alpha_bar"], step.at["then"]
        ratio = jnp.sqrt((1 - then) / then) / jnp.sqrt((1 - now) / now)
        scaled = step.state.sample / jnp.sqrt(now)
        return jnp.sqrt(then) * (step.clean + ratio * (scaled - step.clean))


def test_a_solver_of_ones_own_is_a_class_and_an_entry(monkeypatch):
    monkeypatch.setitem(rules.RULES, "euler", Euler())
    schedule = NoiseSchedule("cosine")
    with pytest.raises(InputError, match="kind 'heun' is not one of ddpm, ddim, dpm_solver, euler"):
        SolverConfig("heun", schedule)
    first, euler = (
        make_solver(SolverConfig(kind, schedule, spacing="linspace", **more), 20)
        for kind, more in (("dpm_solver", {"order": 1}), ("euler", {}))
    )
    assert not euler.needs_noise
    # Both are DDIM in other words, so that they make the same of the same predictions.
    sample = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    states = [solver.init(sample) for solver in (first, euler)]
    for step in range(20):
        for place, solver in enumerate((first, euler)):
            output = 0.5 * jnp.sin(states[place].sample)
            states[place] = solver.step(states[place], step, output)
    np.testing.assert_allclose(states[0].sample, states[1].sample, rtol=1e-3, atol=1e-4)
    assert np.abs(states[0].sample - sample).max() > 0.1
