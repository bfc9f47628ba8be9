"""Paths that were taught, and whether clips follow them."""

import numpy as np
import pytest

from show1_jax.errors import InputError
from show1_jax.shapes.drawing import render
from show1_jax.shapes.judge import measure
from show1_jax.shapes.motion import TAUGHT, Taught, draw, make, words
from show1_jax.shapes.paths import likeness
from show1_jax.shapes.scenes import DURATION, Combination
from show1_jax.shapes.taught_motions import TAUGHT_MOTIONS
from tests.data.videos import read_video

TIMES = np.linspace(0, DURATION, 8)


@pytest.mark.parametrize("motion", TAUGHT_MOTIONS)
def test_drawn_motions_are_measured_and_are_not_each_other(motion):
    blue = Combination("large", "blue", "square", "left", "white")
    path = measure(render(Taught(blue, motion), 8, 10, 16)).path
    for other in TAUGHT_MOTIONS:
        found = likeness(path, Taught(TAUGHT, other).centroid(TIMES))
        assert found.joint >= found.axes - 1e-3
        assert found.axes > 0.97 if other == motion else found.axes < 0.8, other


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
    for motion in TAUGHT_MOTIONS:
        video, fps = read_video(tmp_path / "motions" / f"{motion}.mp4")
        assert (len(video), fps) == (29, 7.5)
        assert (tmp_path / "motions" / f"{motion}.txt").read_text() == words(TAUGHT, motion)
        taught = Taught(TAUGHT, motion).centroid(np.linspace(0, DURATION, 29))
        assert likeness(measure(video).path, taught).axes > 0.97
    with pytest.raises(InputError, match=r"circle\.txt cannot be written"):
        make(tmp_path / "motions" / "circle.txt")
