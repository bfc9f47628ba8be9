"""Roundness and flicker, of clips that are drawn right and wrong."""

import numpy as np
import pytest

from show1_jax.shapes import drawing
from show1_jax.shapes import scenes as shapes
from show1_jax.shapes.outlines import flicker, roundness

AREAS = {"circle": 1, "square": 2 / np.pi, "triangle": 3**1.5 / 4 / np.pi}


def clip(shape, size="small", rows=80):
    own = shapes.Combination(size, "red", shape, "right", "gray", "arc")
    scene = shapes.random_scene(own, np.random.default_rng(0))
    return drawing.render(scene, 29, rows, rows * 8 // 5)


@pytest.mark.parametrize(("shape", "share"), AREAS.items())
@pytest.mark.parametrize("size", shapes.SIZES)
def test_the_circle_around_a_shape_is_the_smallest(shape, share, size):
    np.testing.assert_allclose(roundness(clip(shape, size)), share, rtol=0.1)


def test_a_stretched_circle_is_round_to_those_who_know():
    video = clip("circle", rows=160)
    wide = video[:, :, np.arange(288) * 8 // 9]
    assert roundness(wide, 1.125).min() > 0.95
    assert roundness(wide).max() < 0.91


def test_frames_without_a_shape_are_not_round():
    video = clip("circle")
    video[3] = 128
    found = roundness(video)
    assert found[3] == 0
    assert np.delete(found, 3).min() > 0.95
    assert not roundness(np.zeros_like(video)).any()
    assert np.isnan(flicker(np.zeros_like(video)))


def test_an_outline_that_changes_flickers_and_one_that_moves_does_not():
    steady, rng = clip("circle"), np.random.default_rng(0)
    changing = steady.copy()
    for frame in changing:  # bites of a tenth of the diameter at places that change
        shown = (frame != 128).any(-1)
        rows, columns = np.nonzero(shown & ~np.roll(shown, 4, 1) & ~np.roll(shown, 4, 0))
        place = rng.integers(len(rows)) if len(rows) else 0
        y, x = (rows[place], columns[place]) if len(rows) else np.argwhere(shown)[0]
        frame[y - 3 : y + 4, x - 3 : x + 4] = 128
    assert flicker(steady) < 0.04
    assert flicker(changing) > 2 * flicker(steady)
    # A frame with but a speck counts as one without the shape.
    speck = steady.copy()
    speck[5] = 128
    speck[5, 40:42, 60:62] = shapes.COLORS["red"]
    assert flicker(speck) < 0.04
    assert roundness(speck)[5] == 0
