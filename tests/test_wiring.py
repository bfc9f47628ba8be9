"""Every setting reaches the network of its stage, and each stage starts from the right results.

Mirrors stand for the networks, at the real sizes of the embedded checkpoint's stages, and the
whole result is compared with what these settings say that it is: see `tests/mirror.py`.
"""

import functools
import json
import shutil
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from show1_jax import stages
from show1_jax.adapters.files import Adapter, save_adapter
from show1_jax.checkpoints.released import StageFolder
from show1_jax.configs import tiny
from show1_jax.diffusion.schedule import NoiseSchedule, add_noise
from show1_jax.generate import override
from show1_jax.stages.upscaling import upsample
from show1_jax.text.encoding import load_encoder
from tests.mirror import LOG_VARIANCE, PARAMETER, Given, Mirrored, reading

PROMPTS = ["a small red circle moving left", "a large cyan square moving up"]
NEGATIVE = "a blue triangle"
SEEDS = [5, 900]
GUIDANCE = {
    "keyframes": 2.0,
    "interpolation": 1.5,
    "first_frame": 3.0,
    "super_resolution": 2.5,
    "translation": 1.25,
}
NOISE_LEVELS = {"first_frame": 150, "super_resolution": 400}
START, AUGMENTATION, POSTERIOR = range(3)
RED, GREEN, BLUE = range(3)
NAMES = (
    "red: text and guidance",
    "green: timestep, noise level, parameter",
    "blue: what it starts from",
)
# One step of each stage, so that the noise that it starts from is not gone in the end.
SETTINGS = {"steps": ["1", "translation=2"], "guidance": [f"{k}={v}" for k, v in GUIDANCE.items()]}


def config(overrides=None):
    settings = tiny.get_config()
    settings.batch_size = len(PROMPTS)
    for stage, level in NOISE_LEVELS.items():
        settings[stage].noise_level = level
    settings.translation.update(strength=0.5, negative_prompt=NEGATIVE)
    override(settings, SETTINGS if overrides is None else overrides)
    return settings


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    shapes = {
        "keyframes": (8, 10, 16, 3),
        "interpolation": (29, 10, 16, 3),
        "first_frame": (40, 64, 3),
        "super_resolution": (29, 40, 64, 3),
    }
    # Beyond what pixels are, as networks make them.
    return {
        stage: rng.uniform(-1.2, 1.2, (len(PROMPTS), *shape)).astype(np.float32)
        for stage, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def texts():
    """What the prompts and both negative prompts read as, by the encoder that is meant for them."""

    def read(folder, tokens, *prompts):
        encoder = load_encoder(StageFolder(tiny.CHECKPOINT / folder), jnp.float32, tokens)
        return dict(zip(prompts, np.asarray(reading(encoder(prompts))), strict=True))

    found = {
        "t5": read("show-1-base", 24, *PROMPTS, ""),
        "clip": read("show-1-sr2", 77, *PROMPTS, NEGATIVE),
    }
    every = sorted(number for each in found.values() for number in each.values())
    assert np.diff(every).min() > 0.003
    return found


def made_by(settings, given, stages=None, checkpoint=tiny.CHECKPOINT):
    """The results of the stages, each from what is given, by stage; and the cascade."""
    results, cascade = Given(given), Mirrored(settings, stages, checkpoint)
    cascade.run(PROMPTS, SEEDS, results)
    return {
        stage: np.stack([results.made[item, stage] for item in range(len(PROMPTS))])
        for stage in cascade.stages
    }, cascade


@pytest.fixture(scope="module")
def made(given):
    """By stage, what it makes of what is given and the cascade that made it."""

    @functools.cache
    def one(stage):
        results, cascade = made_by(config(), given, [stage])
        return results[stage], cascade

    return one


@functools.cache
def noise(stage, purpose, shape):
    """The noise of each seed, which says alone what a clip's randomness is."""
    keys = [jax.random.fold_in(jax.random.key(seed), zlib.crc32(stage.encode())) for seed in SEEDS]
    return jnp.stack([jax.random.normal(jax.random.fold_in(key, purpose), shape) for key in keys])


def augmented(small, stage, frames, schedule=None):
    """Small frames, upsampled and noised to the stage's level."""
    schedule = schedule or NoiseSchedule("cosine")
    level = np.full(len(small), NOISE_LEVELS[stage])
    drawn = noise(stage, AUGMENTATION, (frames, 40, 64, 3))[:, : small.shape[1]]
    return add_noise(schedule.alphas_cumprod, upsample(small, 40, 64), drawn, level)


def picture(stage, texts, shape, timestep, blue, guidance=None, number=0.0):
    """The clean sample `(batch, frames, height, width, 3)` that a mirror shows."""
    guidance = GUIDANCE[stage] if guidance is None else guidance
    read, negative = (texts["clip"], NEGATIVE) if stage == "translation" else (texts["t5"], "")
    told = [read[negative] + guidance * (read[prompt] - read[negative]) for prompt in PROMPTS]
    result = np.zeros((len(PROMPTS), *shape, 3), np.float32)
    result[..., RED] = np.array(told)[:, None, None, None]
    half = shape[1] // 2
    result[:, :, :half, :, GREEN] = timestep / 1000
    result[:, :, half:, :, GREEN] = NOISE_LEVELS.get(stage, 1000 * number) / 1000
    result[..., BLUE] = blue
    return result


def one_step(cascade, stage, start, clean, step=0):
    """What the solver makes of its start in one step that foresees `clean`."""
    at = {name: column[step] for name, column in cascade.real[stage].solver.coefficients.items()}
    clean = clean if stage == "translation" else np.clip(clean, -1, 1)
    return at["sample"] * np.asarray(start) + at["clean"] * clean


def assert_shows(actual, expected):
    assert actual.shape == expected.shape
    for color, name in enumerate(NAMES):
        error = np.abs(actual[..., color] - expected[..., color]).max()
        assert error < 2e-4, f"{name}: {error:.2g} off"


def keyframes(cascade, texts, **changes):
    start = noise("keyframes", START, (8, 10, 16, 3))
    timestep = cascade.real["keyframes"].solver.timesteps[0]
    clean = picture("keyframes", texts, start.shape[1:4], timestep, start[..., RED], **changes)
    return one_step(cascade, "keyframes", start, clean)


@pytest.fixture(scope="module")
def number(made):
    """The parameter that is shown, as stored."""
    return float(made("keyframes")[1].params("keyframes")["unet"]["number"])


def test_keyframes(made, texts, number):
    result, cascade = made("keyframes")
    assert_shows(result, keyframes(cascade, texts, number=number))


def test_interpolation_starts_from_the_keyframes_in_their_order(made, given, texts):
    result, cascade = made("interpolation")
    first, second = given["keyframes"][:, :-1], given["keyframes"][:, 1:]
    # Frame by frame in each gap, of which the last one alone keeps its second keyframe.
    blends = [first * (1 - share) + second * share for share in (0, 0.25, 0.5, 0.75)]
    blue = np.stack(blends, axis=2).reshape(2, 28, 10, 16, 3)
    blue = np.concatenate([blue, given["keyframes"][:, -1:]], axis=1)
    gap = noise("interpolation", START, (5, 10, 16, 3))
    start = jnp.concatenate([gap[:, :4]] * 7 + [gap[:, 4:]], axis=1)
    timestep = cascade.real["interpolation"].solver.timesteps[0]
    clean = picture("interpolation", texts, (29, 10, 16), timestep, blue[..., RED])
    assert_shows(result, one_step(cascade, "interpolation", start, clean))


def first_frame(cascade, texts, given, schedule=None):
    start = noise("first_frame", START, (1, 40, 64, 3))
    blue = augmented(given["interpolation"][:, :1], "first_frame", 1, schedule)
    timestep = cascade.real["first_frame"].solver.timesteps[0]
    clean = picture("first_frame", texts, (1, 40, 64), timestep, blue[..., RED])
    return one_step(cascade, "first_frame", start, clean)[:, 0]


def test_first_frame_starts_from_the_first_one(made, given, texts):
    result, cascade = made("first_frame")
    assert_shows(result, first_frame(cascade, texts, given))


def super_resolution(cascade, texts, given, schedule=None):
    start = noise("super_resolution", START, (8, 40, 64, 3))
    timestep = cascade.real["super_resolution"].solver.timesteps[0]
    result = np.zeros((2, 29, 40, 64, 3), np.float32)
    result[:, 0] = given["first_frame"]
    for at in (0, 7, 14, 21):
        small = given["interpolation"][:, at : at + 8]
        blue = augmented(small, "super_resolution", 8, schedule).at[:, 0].set(result[:, at])
        clean = picture("super_resolution", texts, (8, 40, 64), timestep, blue[..., RED])
        result[:, at : at + 8] = one_step(cascade, "super_resolution", start, clean)
    return result


def test_super_resolution_goes_on_from_the_first_frame_window_by_window(made, given, texts):
    result, cascade = made("super_resolution")
    assert_shows(result, super_resolution(cascade, texts, given))


def translation(cascade, texts, given, step, **changes):
    """Its last step, from the clip that is noised to it."""
    large = np.clip(given["super_resolution"], -1, 1)
    large = ((large + 1) / 2 * 255).astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(frame).resize((144, 80), Image.Resampling.BICUBIC))
        for clip in large
        for frame in clip
    ]
    pixels = np.stack(large).astype(np.float32) / 255 * 2 - 1
    latents = pixels.reshape(2, 29, 10, 8, 18, 8, 3).mean((3, 5))
    spread = np.exp(LOG_VARIANCE / 2) * cascade.stages["translation"].vae.config.scaling_factor
    latents = latents + spread * noise("translation", POSTERIOR, (29, 10, 18, 4))[..., :3]
    solver = cascade.real["translation"].solver
    left = solver.config.schedule.alphas_cumprod[solver.timesteps[step]]
    drawn = noise("translation", START, (29, 10, 18, 4))[..., :3]
    start = np.sqrt(left) * latents + np.sqrt(1 - left) * drawn
    timestep = solver.timesteps[step]
    clean = picture(
        "translation", texts, (29, 10, 18), timestep, np.asarray(start)[..., RED + 2], **changes
    )
    # A mirror shows the first channel of what it is given, here too.
    clean[..., BLUE] = start[..., RED]
    result = one_step(cascade, "translation", start, clean, step)
    return result.repeat(8, axis=2).repeat(8, axis=3)


def test_translation_starts_from_the_noised_clip_at_its_strength(made, given, texts):
    result, cascade = made("translation")
    assert cascade.real["translation"].solver.num_steps == 2
    assert_shows(result, translation(cascade, texts, given, step=1))


def test_without_guidance_the_negative_prompt_says_nothing(given, texts, number):
    stages = ["keyframes", "translation"]
    results, cascade = made_by(config(SETTINGS | {"guidance": ["1"]}), given, stages)
    expected = keyframes(cascade, texts, guidance=1.0, number=number)
    assert_shows(results["keyframes"], expected)
    expected = translation(cascade, texts, given, step=1, guidance=1.0)
    assert_shows(results["translation"], expected)


def test_the_number_of_steps_and_the_strength_decide_the_timesteps(given):
    settings = config({"steps": ["4", "keyframes=10", "first_frame=2"]})
    settings.translation.strength = 1.0
    results, cascade = made_by(settings, given)
    last = {"keyframes": 10, "first_frame": 2}
    for stage in stages.names():
        solver, steps = cascade.real[stage].solver, last.get(stage, 4)
        # The last of evenly spaced steps, of which the one at 0 is not executed.
        begin = 999 if stage == "translation" else solver.timesteps[0]
        wanted = begin / steps / 1000
        half = results[stage].shape[-3] // 2
        shown = results[stage][..., :half, :, GREEN].mean()
        assert shown == pytest.approx(wanted, abs=0.01), stage


def test_an_adapter_changes_the_parameters_by_its_weight(texts, number, tmp_path):
    change = np.zeros((96, 96), np.float32)
    change[0, 0] = 0.5
    save_adapter(tmp_path / "a.safetensors", Adapter({"/".join(PARAMETER): (change,)}))
    settings = config()
    settings.keyframes.adapters = (f"{tmp_path}/a.safetensors=0.25",)
    results, cascade = made_by(settings, {}, ["keyframes"])
    expected = keyframes(cascade, texts, number=number + 0.25 * 0.5)
    assert_shows(results["keyframes"], expected)


def test_conditions_are_noised_by_the_schedule_of_the_checkpoint(given, texts, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny.CHECKPOINT, checkpoint, copy_function=link)
    for folder in ("IF-II-L-v1.0", "show-1-sr1"):
        path = checkpoint / folder / "image_noising_scheduler" / "scheduler_config.json"
        settings = json.loads(path.read_text()) | {"beta_schedule": "linear"}
        path.unlink()
        path.write_text(json.dumps(settings))
    stages = ["first_frame", "super_resolution"]
    results, cascade = made_by(config(), given, stages, checkpoint)
    linear = NoiseSchedule("linear", 1e-4, 0.02)
    expected = first_frame(cascade, texts, given, linear)
    assert_shows(results["first_frame"], expected)
    expected = super_resolution(cascade, texts, given, linear)
    assert_shows(results["super_resolution"], expected)


def link(source, target):
    Path(target).symlink_to(source)
