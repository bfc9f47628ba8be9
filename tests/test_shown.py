"""What the videos of the embedded checkpoint show, from the prompt to the files.

One batch goes through all stages at their real sizes, in the fewest steps in which these prompts
are followed.
"""

import numpy as np
import pytest
from PIL import Image

from show1_jax.configs import tiny
from show1_jax.engine import Engine
from show1_jax.evaluation.metrics import psnr
from show1_jax.generate import generate, override
from show1_jax.media import resize_uint8, to_uint8
from show1_jax.shapes.evaluation import aspect
from show1_jax.shapes.judge import measure
from show1_jax.shapes.scenes import Combination, caption, difference, split_of
from show1_jax.shapes.tables import attributes_of
from show1_jax.stages import names
from show1_jax.stages.upscaling import shrink
from tests.data.videos import read_video
from tests.mirror import Given

SEED = 7
# They differ in everything.
ASKED = [
    Combination("large", "purple", "square", "down and to the right", "white"),
    Combination("small", "cyan", "triangle", "up and to the left", "gray"),
]
PROMPTS = [caption(combination, template) for template, combination in enumerate(ASKED)]
ITEMS = range(len(ASKED))
STEPS = [f"{stage}=1" for stage in names()[1:4]] + ["keyframes=3", "translation=5"]


def config():
    settings = tiny.get_config()
    settings.batch_size = len(PROMPTS)
    # One frame of each clip at a time: of any other number some are left over, to compile for.
    settings.translation.vae_frames = len(PROMPTS)
    return settings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("shown") / "out"
    checkpoint, overrides = str(tiny.CHECKPOINT), {"steps": STEPS}
    generate(config(), checkpoint, PROMPTS, seeds=[SEED], out=out, overrides=overrides)
    return out


def exact(out, item, stage):
    return np.load(out / f"{item:03d}" / f"{stage}.npy")


@pytest.mark.parametrize("stage", ["keyframes", "interpolation", "super_resolution", "translation"])
def test_the_videos_show_what_was_asked_for(made, stage):
    sizes = {"keyframes": (8, 10, 16), "interpolation": (29, 10, 16)}
    sizes |= {"super_resolution": (29, 40, 64), "translation": (29, 80, 144)}
    for item, asked in enumerate(ASKED):
        assert split_of(asked) == "validation"  # what the checkpoint was not trained on
        video, fps = read_video(made / f"{item:03d}" / f"{stage}.mp4")
        assert video.shape == (*sizes[stage], 3)
        # All of them last as long as 29 frames at 7.5 a second; of the keyframes each stands for 4.
        assert fps == pytest.approx(7.5 / 4 if stage == "keyframes" else 7.5)
        stretch = video.shape[2] / video.shape[1] / aspect(config())
        assert not difference(measure(video, stretch).combination, asked)


def test_the_first_frame_shows_what_was_asked_for(made):
    for item, asked in enumerate(ASKED):
        image = np.asarray(Image.open(made / f"{item:03d}" / "first_frame.png"))
        seen = measure(image[None]).combination
        for name in attributes_of("first_frame"):
            assert getattr(seen, name) == getattr(asked, name)


def nearest(videos, frames):
    """Which frame each frame of a video is nearest to."""
    return [int(np.square(frames - frame).mean((1, 2, 3)).argmin()) for frame in videos]


def path(clip):
    return measure(to_uint8(clip)).path


def test_interpolation_passes_through_the_keyframes_in_their_order(made):
    for item in ITEMS:
        keyframes, frames = exact(made, item, "keyframes"), exact(made, item, "interpolation")
        assert nearest(keyframes, frames) == list(range(0, 29, 4))
        assert psnr(keyframes, frames[::4], peak=2) > 27
        # It moves evenly along a line, so the frames between them are between them.
        line = path(frames)
        assert np.abs(line - np.linspace(line[0], line[-1], 29)).max() < 0.08


def test_the_first_frame_is_the_first_frame(made):
    for item in ITEMS:
        small, image = exact(made, item, "interpolation"), exact(made, item, "first_frame")[None]
        assert psnr(np.asarray(shrink(image, 10, 16)), small[:1], peak=2) > 31
        large = exact(made, item, "super_resolution")
        assert nearest(image, large) == nearest(shrink(image, 10, 16), small) == [0]
        assert psnr(image, large[:1], peak=2) > 28


def test_super_resolution_shrunk_is_what_it_was_made_from(made):
    for item in ITEMS:
        small, large = exact(made, item, "interpolation"), exact(made, item, "super_resolution")
        shrunk = np.asarray(shrink(large, 10, 16))
        assert min(psnr(*pair, peak=2) for pair in zip(shrunk, small, strict=True)) > 30
        assert np.abs(path(large) - path(small)).max() < 0.03
        if ASKED[item].size == "large":  # a small shape is blurred into the frame beside
            assert nearest(shrunk, small) == list(range(29))


def test_no_step_is_seen_where_windows_of_super_resolution_meet(made):
    for item in ITEMS:
        steps = np.abs(np.diff(exact(made, item, "super_resolution"), axis=0)).mean((1, 2, 3))
        joints = [6, 7, 13, 14, 20, 21]
        assert steps[joints].max() < 1.5 * np.median(np.delete(steps, joints))


def test_translation_departs_from_the_clip_no_further_than_its_strength_lets_it(made):
    for item in ITEMS:
        before = to_uint8(exact(made, item, "super_resolution"))
        video, _ = read_video(made / f"{item:03d}" / "translation.mp4")
        pairs = zip(video, resize_uint8(before, 80, 144), strict=True)
        assert min(psnr(*pair) for pair in pairs) > 26


def again(made, stage, seeds, order=(0, 1), **changes):
    """What a stage makes of the same results with other settings, compiled already."""
    settings = config()
    override(settings, {"steps": STEPS})
    settings[stage].update(changes)
    there = [name for name in names()[:4] if name != stage]
    results = Given({name: np.stack([exact(made, item, name) for item in order]) for name in there})
    prompts = [PROMPTS[item] for item in order]
    Engine(settings, tiny.CHECKPOINT, [stage]).run(prompts, seeds, results)
    return [results.made[place, stage] for place in ITEMS]


def test_a_clip_follows_its_prompt_and_seed_wherever_it_stands(made):
    second, first = again(made, "keyframes", [SEED, SEED + 1], order=(1, 0))
    np.testing.assert_allclose(second, exact(made, 1, "keyframes"), atol=1e-4)
    # Of another seed the same is seen elsewhere.
    assert not difference(measure(to_uint8(first)).combination, ASKED[0])
    assert psnr(first, exact(made, 0, "keyframes"), peak=2) < 25


def test_of_a_noisier_condition_the_upscaler_keeps_less(made):
    images = again(made, "first_frame", [SEED, SEED], noise_level=400)
    for item in ITEMS:
        small = exact(made, item, "interpolation")[:1]
        kept, less = (
            psnr(np.asarray(shrink(image[None], 10, 16)), small, peak=2)
            for image in (exact(made, item, "first_frame"), images[item])
        )
        assert kept > less + 0.8
