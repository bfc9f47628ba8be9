"""The judge's drawings of shapes, which are independent of the generator's."""

import math

import numpy as np
import pytest

from show1_jax.shapes import drawing, templates
from show1_jax.shapes import scenes as shapes
from show1_jax.shapes.judge import measure


def draw(shape, side, stretch=1.0):
    """Drawings at random places between pixels, and the places."""
    window = 2 * math.ceil(1.3 * side) + 1
    centroids = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2))
    return templates._draw(shape, window, centroids, side, stretch), centroids


@pytest.mark.parametrize("size", [20, 40])
@pytest.mark.parametrize("name", shapes.SIZES)
def test_a_square_that_the_generator_draws_on_its_corner_is_no_square(monkeypatch, size, name):
    combination = shapes.Combination(name, "red", "square", "right", "black")
    scene = shapes.Scene(combination, -0.2, 0.03, 0.4)
    assert measure(drawing.render(scene, 8, size, 2 * size)).combination[:6] == combination[:6]
    around = shapes.around
    monkeypatch.setattr(
        drawing, "around", lambda sides, turn=0.0: around(sides, turn + math.pi / sides)
    )
    # As its drawings would be turned, too, a judge that uses the same code would see a square.
    assert measure(drawing.render(scene, 8, size, 2 * size)).combination.shape != "square"


@pytest.mark.parametrize("shape", shapes.SIDES)
@pytest.mark.parametrize("side", [2.9, 12.0, 40.0])
def test_drawings_are_the_generators_up_to_antialiasing(shape, side):
    drawn, centroids = draw(shape, side)
    combination = shapes.Combination("small", "red", shape, "left", "black")
    height = side / (shapes.SIZES["small"] * math.sqrt(shapes.area(shape)))
    edges = np.arange(drawn.shape[1]) - drawn.shape[1] // 2 - 0.5
    for own, (x, y) in zip(drawn, centroids, strict=True):
        generated = drawing.coverage(combination, height, edges - x, edges - y)
        np.testing.assert_allclose(own, generated, atol=0.04)


@pytest.mark.parametrize("shape", shapes.SIDES)
@pytest.mark.parametrize("stretch", [1.0, 1.125])
def test_drawings_have_the_area_and_the_centroid_that_are_asked_for(shape, stretch):
    side = 9.7
    drawn, centroids = draw(shape, side, stretch)
    assert drawn.min() >= 0
    assert drawn.max() <= 1 + 1e-9
    area = drawn.sum(axis=(1, 2))
    np.testing.assert_allclose(area, stretch * side**2, rtol=1e-3)
    places = np.arange(drawn.shape[1]) - drawn.shape[1] // 2
    measured = np.stack([drawn.sum(axis=axis) @ places / area for axis in (1, 2)], axis=-1)
    np.testing.assert_allclose(measured, centroids, atol=0.05)  # pixels know no better


def test_the_judge_knows_the_shapes_of_the_captions():
    assert list(templates.SHAPES) == list(shapes.SIDES)
