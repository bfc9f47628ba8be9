"""Recognises a shape by comparing it with drawings of each shape.

At 16x10 a small shape is 3 pixels across, and a circle and a square differ in a few percent of
their coverage. The difference is still clear if drawings are at the same subpixel place, and all
frames are compared.

The drawings use only the geometry of the shapes, and no code of `drawing.render`, so that an
error in that code cannot hide itself.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

# Gaussian blurs to try, in measured sides, by the side to draw, in measured sides too. The side of
# a very blurred shape is measured too large, because its color is taken from its paler core.
BLURS = {1.0: (0.0, 0.1, 0.2), 0.8: (0.3,)}
ROUNDING = 4e-4  # misfit that antialiasing and 8-bit colors cause anyway


class Outline(NamedTuple):
    """A convex shape of area 1, symmetric in x, with its centroid at the origin and y down."""

    top: float
    bottom: float
    half_width: Callable[[np.ndarray], np.ndarray]  # at heights y from top to bottom


RADIUS = math.pi**-0.5  # of the circle
EDGE = 2 * 3**-0.25  # of the equilateral triangle, whose height is 3 ** 0.25
SHAPES: Mapping[str, Outline] = {
    "circle": Outline(-RADIUS, RADIUS, lambda y: np.sqrt(np.maximum(RADIUS**2 - y**2, 0))),
    "square": Outline(-0.5, 0.5, lambda y: np.full_like(y, 0.5)),
    "triangle": Outline(
        -2 / 3 * 3**0.25, 1 / 3 * 3**0.25, lambda y: EDGE / 2 * (y / 3**0.25 + 2 / 3)
    ),
}
# Gauss-Legendre quadrature of each row of pixels: heights between -1 and 1, and weights of sum 2.
HEIGHTS, WEIGHTS = np.polynomial.legendre.leggauss(6)


def best_shape(
    crops: np.ndarray, centroids: np.ndarray, side: float, stretch: float
) -> tuple[str, np.ndarray]:
    """Finds the shape whose drawings fit best.

    Minimises the sum of the logarithms of the frames' misfits, so that a frame that fits no shape
    does not decide. The blur is the same in all frames.

    Args:
      crops: coverage around the shape, `(frames, window, window)`; window is odd.
      centroids: of the shape from the middle pixel, `(frames, 2)`: x and y in pixels.
      side: the square root of the shape's area, in pixels.
      stretch: factor by which it is wider than drawn.

    Returns:
      The name of the shape, and its misfit in each frame, `(frames,)`: the share of the squared
      coverage that the drawing does not explain, 0 to 1.
    """
    fits = {}
    for shape in SHAPES:
        for share, blurs in BLURS.items():
            drawn = _draw(shape, crops.shape[1], centroids, share * side, stretch)
            for blur in blurs:
                fits[shape, blur] = _misfit(crops, _blur(drawn, blur * side), centroids)
    best = min(fits, key=lambda key: float(np.log(fits[key] + ROUNDING).sum()))
    return best[0], fits[best]


def _draw(
    shape: str, window: int, centroids: np.ndarray, side: float, stretch: float
) -> np.ndarray:
    """Draws the coverage of a shape at the centroids, `(frames, window, window)`.

    Integrates over the height of each row of pixels; the part of a line that is inside is exact.
    """
    outline = SHAPES[shape]
    pixels = np.arange(window) - window // 2  # their middles
    x, y = (centroids[:, None, axis] for axis in (0, 1))
    # In sides from the centroid: where each row of pixels, `(frames, window)`, meets the shape.
    top = np.clip((pixels - 0.5 - y) / side, outline.top, outline.bottom)
    bottom = np.clip((pixels + 0.5 - y) / side, outline.top, outline.bottom)
    middle, reach = (top + bottom) / 2, (bottom - top) / 2
    half = stretch * side * outline.half_width(middle[..., None] + reach[..., None] * HEIGHTS)
    half = half[..., None, :]  # rows, then columns, then heights within the row
    left, right = ((pixels + edge - x)[:, None, :, None] for edge in (-0.5, 0.5))
    inside = np.maximum(np.minimum(right, half) - np.maximum(left, -half), 0) @ WEIGHTS
    return inside * (side * reach[..., None])


def _blur(drawn: np.ndarray, deviation: float) -> np.ndarray:
    """Blurs squares `(frames, window, window)` with a Gaussian; the deviation is in pixels."""
    if not deviation:
        return drawn
    places = np.arange(drawn.shape[1])
    weights = np.exp(-np.square((places - places[:, None]) / deviation) / 2)
    weights /= weights.sum(axis=1).max()
    return weights @ drawn @ weights


def _misfit(crops: np.ndarray, drawn: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Computes the share of each frame's squared coverage that the best fit leaves, `(frames,)`.

    Least squares fit the shape's strength, place, size and blur to first order.
    """
    dy, dx = np.gradient(drawn, axis=(1, 2))
    blur = np.gradient(dx, axis=2) + np.gradient(dy, axis=1)
    places = np.arange(drawn.shape[1]) - drawn.shape[1] // 2
    x = (places - centroids[:, :1])[:, None, :]
    y = (places - centroids[:, 1:])[:, :, None]
    basis = np.stack([drawn, dx, dy, x * dx + y * dy, blur], axis=1)
    basis = basis.reshape(*basis.shape[:2], -1)
    seen = crops.reshape(len(crops), -1, 1)
    gram = basis @ basis.transpose(0, 2, 1)
    gram += 1e-6 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(gram.shape[1])
    left = seen - basis.transpose(0, 2, 1) @ np.linalg.solve(gram, basis @ seen)
    return np.square(left).sum(axis=(1, 2)) / np.square(seen).sum(axis=(1, 2))
