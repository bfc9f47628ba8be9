"""How alike two paths of shapes are."""

from typing import NamedTuple

import numpy as np


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
