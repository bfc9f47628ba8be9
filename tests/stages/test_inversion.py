"""DDIM inversion: noise that is made into the clip it came from."""

import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import SolverConfig, make_solver
from show1_jax.errors import InputError
from show1_jax.evaluation.metrics import psnr
from show1_jax.stages.inversion import Noise, invert, inverter, load_noise, save_noise
from show1_jax.stages.sampling import ByTimestep, Conditions, Sampler, clip_keys, run
from tests.stages.made import call
from tests.training.small import small_task


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [("v", NoiseSchedule("cosine")), ("epsilon", NoiseSchedule("scaled_linear", 0.00085, 0.012))],
)
def test_the_noise_of_a_clip_is_made_into_it(prediction, schedule):
    task, params, _ = small_task("keyframes")
    # A random network's output jumps with its input, as no trained one's does.
    params["conv_out"] = jax.tree.map(lambda leaf: leaf * 0.2, params["conv_out"])
    solver = SolverConfig("dpm_solver", schedule, prediction, threshold=0.9)
    sampler = inverter(Sampler(task.module, make_solver(solver, 4)), 25)
    clip = jnp.clip(jax.random.normal(jax.random.key(0), (1, 3, 4, 6, 3)), -1, 1)
    text = jax.random.normal(jax.random.key(1), (2, 1, 5, task.module.config.text_dim))
    seeds = jnp.zeros(1, int)
    conditions, keys = Conditions(text), clip_keys(seeds, "keyframes")
    told = []
    # As an adapter does that is for the noisier timesteps alone.
    params = ByTimestep(((0, params), (500, jax.tree.map(lambda leaf: 0.9 * leaf, params))))
    own = call(sampler, params, text, seeds, 1.0, lambda *of: told.append(of))
    noise = invert(own, clip, conditions, keys)
    assert told[-1] == (25, 25)
    assert float(jnp.abs(noise - clip).max()) > 0.1
    again = np.clip(run(own, noise, conditions, keys), -1, 1)
    assert psnr(again, np.asarray(clip), peak=2) > 40


def test_noise_files(tmp_path):
    noise = Noise("translation", np.ones((1, 2, 4, 4, 3), np.float32), 50, 0.25)
    told = noise._replace(stage="first_frame", frames=noise.noise[..., :1], noise_level=7)
    path = tmp_path / "keyframes.noise.npz"
    for each in (noise, told):
        save_noise(path, each)
        jax.tree.map(np.testing.assert_array_equal, load_noise(path), each)
    np.savez(tmp_path / "other.npz", x=1)
    path.write_bytes(path.read_bytes()[:50])
    for wrong in (path, tmp_path / "other.npz", tmp_path / "none.npz"):
        with pytest.raises(InputError, match="is no noise"):
            load_noise(wrong)
    with pytest.raises(InputError, match="cannot write"):
        save_noise(path / "below.npz", noise)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "sound"},
        {"stage": ["keyframes", "keyframes"]},
        {"steps": float("inf")},
        {"steps": 0},
        {"strength": float("nan")},
        {"noise": np.full((1, 2, 4, 4, 3), np.nan, np.float32)},
        {"noise": np.ones(3, np.float32)},
        {"noise": np.full((1, 2, 4, 4, 3), "text")},
        {"frames": np.ones((1, 2, 4, 4, 3), np.float32)},
        {"noise_level": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_noise_that_no_stage_starts_from_is_refused(change, tmp_path):
    good = Noise("keyframes", np.ones((1, 2, 4, 4, 3), np.float32), 50)
    arrays = {name: value for name, value in good._asdict().items() if value is not None}
    np.savez(tmp_path / "noise.npz", **arrays | change)
    with pytest.raises(InputError, match="is no noise"):
        load_noise(tmp_path / "noise.npz")


@pytest.mark.parametrize(
    "header", ["{", "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"]
)
def test_noise_that_says_more_than_it_holds_is_refused(header, tmp_path):
    save_noise(tmp_path / "good.npz", Noise("keyframes", np.ones((1, 2, 4, 4, 3), np.float32), 50))
    text = header.encode().ljust(117) + b"\n"
    with (
        zipfile.ZipFile(tmp_path / "good.npz") as good,
        zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad,
    ):
        for name in good.namelist():
            head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
            bad.writestr(name, head + text if name == "noise.npy" else good.read(name))
    with pytest.raises(InputError, match="is no noise"):
        load_noise(tmp_path / "bad.npz")
