"""How alike two paths of shapes are."""

import math
from typing import NamedTuple

import numpy as np

from show1_jax.shapes.moving_shapes import BACKGROUNDS, COLORS, Combination


class Likeness(NamedTuple):
    """Correlations of two paths, wherever they lie and however large they are: -1 to 1.

    `joint` takes x and y as one series. `axes` is the smaller of that of x and
    that of y: by it no straight line is like a zigzag.
    """

    joint: float
    axes: float


def likeness(path: np.ndarray, other: np.ndarray) -> Likeness:
    """Compares paths `(frames, 2)`, where both have a place.

    Returns:
      Zeros, if that is in fewer than half of the frames.
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
    """Mean distance between two paths `(frames, 2)`, in their unit: `mean(|p - q|)`.

    Frames in which either is not known (NaN) are left out; NaN if that is all of them.
    """
    distances = np.linalg.norm(path - true_path, axis=-1)
    known = distances[np.isfinite(distances)]
    return float(known.mean()) if known.size else math.nan


def centroids(video: np.ndarray, combination: Combination) -> np.ndarray:
    """Where a shape of known colours is in each frame, taken as it looks: sharp or nowhere.

    It is the mean place of the pixels that are more shape than background. The
    centroid of all coverage would not do: of two keyframes that are blended it
    lies right between them, though there are two ghosts and no shape.

    Args:
      video: `(frames, height, width, 3)` uint8.
      combination: what it shows.

    Returns:
      `(frames, 2)`: x and y in pixels, NaN where there is no such pixel.
    """
    background = np.array(BACKGROUNDS[combination.background], np.float32)
    contrast = np.array(COLORS[combination.color], np.float32) - background
    shape = (video - background) @ contrast > 0.5 * contrast @ contrast
    area = shape.sum(axis=(1, 2))
    y, x = np.indices(shape.shape[1:])
    sums = np.stack([(shape * axis).sum(axis=(1, 2)) for axis in (x, y)], axis=-1)
    with np.errstate(invalid="ignore"):
        return sums / area[:, None]
