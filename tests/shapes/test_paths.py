"""How alike two paths are."""

import numpy as np
import pytest

from show1_jax.shapes.motion import TAUGHT, Taught
from show1_jax.shapes.paths import likeness
from show1_jax.shapes.scenes import DURATION
from show1_jax.shapes.taught_motions import TAUGHT_MOTIONS

TIMES = np.linspace(0, DURATION, 8)
PATH = Taught(TAUGHT, "circle").centroid(TIMES)


def test_likeness_does_not_depend_on_place_and_size():
    assert likeness(3 * PATH + 0.1, PATH) == pytest.approx((1, 1))
    assert likeness(-PATH, PATH) == pytest.approx((-1, -1))


def test_paths_that_share_one_axis_are_alike_in_that_alone():
    found = likeness(PATH * [1, -1], PATH)
    assert found.axes == pytest.approx(-1)
    assert -0.5 < found.joint < 0.5


@pytest.mark.parametrize("motion", TAUGHT_MOTIONS)
def test_no_straight_line_is_like_a_motion_in_both_axes(motion):
    taught = Taught(TAUGHT, motion).centroid(TIMES)
    for angle in np.linspace(0, np.pi, 13):
        line = np.stack([TIMES * np.cos(angle), TIMES * np.sin(angle)], axis=-1)
        assert likeness(line, taught).axes < 0.45


def test_half_of_the_frames_must_be_seen():
    some = PATH.copy()
    some[:3] = np.nan
    assert likeness(some, PATH) == pytest.approx((1, 1))
    some[:5] = np.nan
    assert likeness(some, PATH) == likeness(PATH, some) == (0, 0)
