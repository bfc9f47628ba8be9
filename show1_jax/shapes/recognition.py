"""Recognises motions from the centroids of a clip's frames."""

import functools
from typing import NamedTuple

import numpy as np

from show1_jax.shapes.scenes import DIRECTIONS, motions, path, turns_at_edge

TURNS = np.linspace(0.25, 0.75, 21)  # when a motion may turn, as shares of the clip
MIN_SEEN = 3  # centroids; place and length are three unknowns
ROUNDS = 8  # of reweighting, which makes the fit robust against single frames
NOISE = 0.01  # heights; farther from a path, distance counts by its logarithm
MAX_MISFIT = 0.15  # median distance from the best path, as a share of its length


class Recognised(NamedTuple):
    """What a shape's path was recognised as.

    Attributes:
      direction: name in `DIRECTIONS`.
      motion: name in `MOTIONS`; "" if the path is like none of them.
      length: of the path in heights.
      turn: when it turned, as a share of the clip.
    """

    direction: str
    motion: str
    length: float
    turn: float


def recognise(centroids: np.ndarray) -> Recognised | None:
    """Finds the motion, direction and length of path that fit the centroids best.

    Fits place and length of each possible path of `scenes.path` by iteratively reweighted least
    squares, first to the sum of distances, then to that of their logarithms, so that a few wrong
    centroids do not decide. Chooses the path with the smallest sum.

    Args:
      centroids: in each frame of a whole clip, `(frames, 2)`: x and y in heights; NaN where they
        are unknown.

    Returns:
      The best fit; None if there are fewer than `MIN_SEEN` centroids.
    """
    seen = np.flatnonzero(np.isfinite(centroids[:, 0]))
    if len(seen) < MIN_SEEN:
        return None
    known, paths = _known(len(centroids))
    own, places = paths[:, seen], centroids[seen]  # (paths, seen, 2) and (seen, 2)
    weights = np.ones(own.shape[:2])
    for number in range(ROUNDS):
        shares = (weights / weights.sum(axis=1, keepdims=True))[..., None]
        middle, place = (shares * own).sum(axis=1), (shares * places).sum(axis=1)
        moved, shifted = own - middle[:, None], places - place[:, None]
        squares = np.maximum((shares * moved**2).sum(axis=(1, 2)), 1e-12)
        length = np.maximum((shares * moved * shifted).sum(axis=(1, 2)) / squares, 0)
        distance = np.linalg.norm(shifted - length[:, None, None] * moved, axis=-1)
        errors = np.hypot(distance, NOISE)
        weights = errors ** (-1.0 if number < ROUNDS // 2 else -2.0)
    misfit = np.log(errors).mean(axis=1)
    best = int(misfit.argmin())
    found = known[best]
    near = np.median(distance[best]) <= MAX_MISFIT * length[best]
    return Recognised(
        found.direction, found.motion if near else "", float(length[best]), found.turn
    )


class _Path(NamedTuple):
    direction: str
    motion: str
    turn: float


@functools.cache
def _known(frames: int) -> tuple[list[_Path], np.ndarray]:
    """Returns all paths, and their places in that number of frames, `(paths, frames, 2)`."""
    known = [
        _Path(direction, motion, float(turn))
        for direction in DIRECTIONS
        for motion in motions(direction)
        for turn in (TURNS if turns_at_edge(motion) else (0.5,))
    ]
    shares = np.linspace(0, 1, frames)
    places = [path(one.motion, one.direction, shares, one.turn) for one in known]
    return known, np.stack(places)
