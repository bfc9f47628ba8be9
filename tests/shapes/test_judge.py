import numpy as np
import pytest

from show1_jax.media import resize_uint8
from show1_jax.shapes import drawing
from show1_jax.shapes import scenes as shapes
from show1_jax.shapes.judge import UNKNOWN, measure
from show1_jax.shapes.paths import centroid_error
from show1_jax.shapes.scenes import Combination, Scene
from tests.shapes.clips import accuracy, blur, noisy, scenes, true_path, wrong

NOTHING = Combination(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, "", UNKNOWN, UNKNOWN)


def rendered(count, frames, height, width):
    return [(scene, drawing.render(scene, frames, height, width)) for scene in scenes(count)]


@pytest.mark.parametrize(
    ("count", "frames", "height", "width"),
    [
        (150, 8, 10, 16),
        (150, 8, 20, 32),
        (100, 8, 24, 40),
        (100, 8, 40, 64),
        (10, 29, 40, 64),
        (100, 8, 80, 128),
        (6, 29, 160, 256),
        (6, 29, 160, 288),
        (4, 29, 320, 576),
        (20, 8, 55, 93),  # nothing divides these
        (20, 8, 101, 163),
    ],
)
def test_rendered_clips_are_measured_right(count, frames, height, width):
    right = 0
    for scene, video in rendered(count, frames, height, width):
        seen = measure(video)
        right += not shapes.difference(seen.combination, scene.combination)
        assert seen.path.shape == (frames, 2)
        assert centroid_error(seen.path, true_path(scene, frames)) < 0.06 / height
    assert right >= 0.99 * count


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(10, 16), (40, 64)])
def test_every_combination_is_measured_right(height, width):
    for scene, video in rendered(864, 8, height, width):
        assert not wrong(scene, video)


def test_noise_wrong_colours_and_uneven_backgrounds_do_no_harm():
    rng = np.random.default_rng(0)
    clips = []
    for scene, video in rendered(150, 8, 20, 32):
        shade = rng.uniform(-12, 12) * np.linspace(-1, 1, 32)[:, None]
        tinted = video * rng.uniform(0.9, 1, 3) + rng.uniform(-15, 15, 3) + shade
        clips.append((scene, noisy(tinted, rng)))
    assert accuracy(clips) >= 0.99


@pytest.mark.parametrize(("size", "blurs"), [((20, 32), (0.5, 0.75)), ((40, 64), (0.5, 1, 1.5))])
def test_blur_does_no_harm(size, blurs):
    rng = np.random.default_rng(0)
    clips = rendered(60, 8, *size)
    assert accuracy([(s, noisy(blur(v, rng.choice(blurs)), rng)) for s, v in clips]) >= 0.98


def test_upscaled_clips_are_measured_right():
    clips = [(scene, resize_uint8(video, 80, 128)) for scene, video in rendered(40, 8, 20, 32)]
    assert accuracy(clips) >= 0.99


def test_a_few_bad_frames_do_no_harm():
    rng = np.random.default_rng(0)
    clips = rendered(60, 8, 20, 32)
    for _, video in clips:
        misplaced, lost, noise = rng.permutation(8)[:3]
        video[misplaced] = np.roll(video[misplaced], 10, axis=1)
        video[lost] = video[lost, 0, 0]
        video[noise] = rng.integers(0, 256, video[noise].shape)
        assert np.isnan(measure(video).path[[lost, noise]]).all()
    assert accuracy(clips) >= 0.99


@pytest.mark.parametrize(("height", "width"), [(320, 576), (160, 288)])
def test_stretched_clips_keep_their_path(height, width):
    clips = rendered(8, 8, 160, 256)
    clips = [(scene, resize_uint8(video, height, width)) for scene, video in clips]
    assert accuracy(clips, stretch=1.125) == 1
    for scene, video in clips:
        right, untold = (
            centroid_error(measure(video, stretch).path, true_path(scene, 8))
            for stretch in (1.125, 1)
        )
        assert right < 2e-3
        # Untold, x is an eighth too large.
        assert untold > right


@pytest.mark.parametrize(("direction", "step"), shapes.DIRECTIONS.items())
def test_directions_are_those_of_the_frame(direction, step):
    # Drawn here pixel by pixel: x counts columns to the right, y rows downwards.
    video = np.zeros((8, 40, 64, 3), np.uint8)
    for frame in range(8):
        x, y = 29 + (frame - 4) * step[0], 17 + (frame - 4) * step[1]
        video[frame, y : y + 11, x : x + 11] = shapes.COLORS["red"]
    seen = Combination("small", "red", "square", direction, "black")
    assert not shapes.difference(measure(video).combination, seen)


@pytest.mark.parametrize("attribute", Combination._fields)
def test_a_clip_of_something_else_is_not_right(attribute):
    asked = Combination("small", "purple", "square", "right", "gray", "arc", "slowly")
    other = Combination("large", "blue", "circle", "up", "black", "straight", "quickly")
    made = asked._replace(**{attribute: getattr(other, attribute)})
    scene = shapes.random_scene(made, np.random.default_rng(0))
    seen = measure(drawing.render(scene, 8, 20, 32)).combination
    assert seen == made
    assert shapes.difference(seen, asked) == [attribute]


@pytest.mark.parametrize(("name", "color"), shapes.BACKGROUNDS.items())
def test_an_empty_clip_shows_only_its_background(name, color):
    plain = np.broadcast_to(np.array(color, np.uint8), (8, 20, 32, 3))
    for video in (plain, noisy(plain, np.random.default_rng(0)), plain[:1], plain[:, :3, :4]):
        seen = measure(video)
        assert seen.combination == NOTHING._replace(background=name)
        assert np.isnan(seen.path).all()
        assert len(seen.path) == len(video)


def test_what_is_no_shape_of_the_palette_has_no_name():
    noise = np.random.default_rng(0).integers(0, 256, (8, 20, 32, 3), dtype=np.uint8)
    assert measure(noise).combination == NOTHING._replace(background="gray")
    still = drawing.render(
        Scene(Combination("large", "red", "circle", "up", "white"), 0, 0, 0), 8, 40, 64
    )
    assert measure(still).combination[:5] == ("large", "red", "circle", UNKNOWN, "white")
    assert measure(still[:1]).combination == measure(still).combination
    still[(still != 255).any(axis=-1)] = 0
    assert measure(still).combination.color == UNKNOWN
    orange = np.full((8, 20, 32, 3), (255, 100, 0), np.uint8)
    assert measure(orange).combination.background == UNKNOWN


def test_two_frames_are_too_few_to_tell_a_motion():
    own = Combination("small", "red", "circle", "right", "black", "turning back")
    scene = shapes.random_scene(own, np.random.default_rng(0))
    seen = measure(drawing.render(scene, 2, 40, 64)).combination
    assert (seen.color, seen.direction, seen.motion) == ("red", UNKNOWN, UNKNOWN)


def test_measuring_leaves_the_video_alone():
    video = drawing.render(next(scenes(1)), 8, 20, 32)
    before = video.copy()
    assert measure(video).combination == measure(video).combination
    np.testing.assert_array_equal(video, before)
