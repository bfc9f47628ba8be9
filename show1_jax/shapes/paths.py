"""Compares paths of shapes."""

import math
from typing import NamedTuple

import numpy as np

from show1_jax.shapes.scenes import BACKGROUNDS, Moving


class Likeness(NamedTuple):
    """Correlations of two paths, -1 to 1, which do not depend on their places and sizes.

    Attributes:
      joint: correlation of x and y as one series.
      axes: the smaller of the correlations of x and of y. It is small for a straight line and a
        zigzag.
    """

    joint: float
    axes: float


def likeness(path: np.ndarray, other: np.ndarray) -> Likeness:
    """Correlates two paths `(frames, 2)` over the frames in which both are known (not NaN).

    Returns:
      The correlations; zeros if both are known in fewer than half of the frames.
    """
    seen = np.isfinite(path[:, 0]) & np.isfinite(other[:, 0])
    if seen.sum() < len(path) / 2:
        return Likeness(0.0, 0.0)
    a, b = (x[seen] - x[seen].mean(axis=0) for x in (path, other))

    def correlation(axis: int | None) -> float:
        lengths = np.sqrt((a * a).sum(axis) * (b * b).sum(axis))
        return float(((a * b).sum(axis) / np.maximum(lengths, 1e-12)).min())

    return Likeness(correlation(None), correlation(0))


def centroid_error(path: np.ndarray, true_path: np.ndarray) -> float:
    """Computes the mean distance between two paths `(frames, 2)`, `mean(|p - q|)`.

    Returns:
      The mean over the frames in which both are known (not NaN); NaN if there are none.
    """
    distances = np.linalg.norm(path - true_path, axis=-1)
    known = distances[np.isfinite(distances)]
    return float(known.mean()) if known.size else math.nan


def centroids(video: np.ndarray, scene: Moving) -> np.ndarray:
    """Locates a shape of known color in each frame.

    The place is the mean of the pixels that are more shape than background. The centroid of all
    coverage would be misleading: for two blended keyframes it is in the middle between them, where
    there is no shape.

    Args:
      video: `(frames, height, width, 3)` uint8.
      scene: gives the colors of shape and background.

    Returns:
      `(frames, 2)`: x and y in pixels; NaN in frames without such pixels.
    """
    background = np.array(BACKGROUNDS[scene.combination.background], np.float32)
    contrast = scene.color - background
    shape = (video - background) @ contrast > 0.5 * contrast @ contrast
    area = shape.sum(axis=(1, 2))
    y, x = np.indices(shape.shape[1:])
    sums = np.stack([(shape * axis).sum(axis=(1, 2)) for axis in (x, y)], axis=-1)
    with np.errstate(invalid="ignore"):
        return sums / area[:, None]
