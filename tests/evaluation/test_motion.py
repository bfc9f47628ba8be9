"""Paths that were taught, and whether clips follow them."""

import numpy as np
import pytest

from show1_jax.data.moving_shapes import DURATION, Combination, render
from show1_jax.errors import InputError
from show1_jax.evaluation.motion import MOTIONS, TAUGHT, Taught, correlation, draw, make, words
from show1_jax.evaluation.shapes import measure
from tests.data.videos import read_video

TIMES = np.linspace(0, DURATION, 8)


@pytest.mark.parametrize("motion", MOTIONS)
def test_drawn_motions_are_measured_and_are_not_each_other(motion):
    blue = Combination("large", "blue", "square", "left", "white")
    path = measure(render(Taught(blue, motion), 8, 10, 16)).path
    for other in MOTIONS:
        likeness = correlation(path, Taught(TAUGHT, other).centroid(TIMES))
        assert likeness > 0.97 if other == motion else likeness < 0.8, other


def test_likeness_does_not_depend_on_place_and_size_and_needs_half_of_the_frames():
    path = Taught(TAUGHT, "circle").centroid(TIMES)
    assert correlation(3 * path + 0.1, path) == pytest.approx(1)
    assert correlation(-path, path) == pytest.approx(-1)
    for motion in MOTIONS:
        taught = Taught(TAUGHT, motion).centroid(TIMES)
        for angle in np.linspace(0, np.pi, 13):
            line = np.stack([TIMES * np.cos(angle), TIMES * np.sin(angle)], axis=-1)
            assert correlation(line, taught) < 0.75
    some = path.copy()
    some[:3] = np.nan
    assert correlation(some, path) == pytest.approx(1)
    some[:5] = np.nan
    assert correlation(some, path) == 0


def test_prompts_are_of_other_shapes_and_colours():
    for backgrounds, count in ((False, 20), (True, 40)):
        wanted = draw(50, 0, backgrounds)
        assert len(set(wanted)) == count
        for each in wanted:
            assert each.color != TAUGHT.color
            assert each.shape != TAUGHT.shape
            assert (each.background == TAUGHT.background) is not backgrounds
    assert words(TAUGHT, "spiral") == "a small red circle moving in a spiral on a black background"


def test_clips_to_be_taught_are_written(tmp_path):
    make(tmp_path / "motions")
    for motion in MOTIONS:
        video, fps = read_video(tmp_path / "motions" / f"{motion}.mp4")
        assert (len(video), fps) == (29, 7.5)
        assert (tmp_path / "motions" / f"{motion}.txt").read_text() == words(TAUGHT, motion)
        likeness = correlation(
            measure(video).path, Taught(TAUGHT, motion).centroid(np.linspace(0, DURATION, 29))
        )
        assert likeness > 0.97
    with pytest.raises(InputError, match=r"circle\.txt cannot be written"):
        make(tmp_path / "motions" / "circle.txt")
