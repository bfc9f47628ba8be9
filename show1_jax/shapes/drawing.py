"""Draws scenes of moving shapes."""

import math

import numpy as np
from numpy.typing import ArrayLike

from show1_jax.shapes.scenes import (
    BACKGROUNDS,
    DURATION,
    SIDES,
    SIZES,
    Combination,
    Moving,
    around,
    extent,
    inradius,
)

SUBPIXELS = 2  # per side of a pixel; edges are antialiased in each


def render(scene: Moving, frames: int | ArrayLike, height: int, width: int) -> np.ndarray:
    """Draws a scene, antialiased.

    Args:
      scene: to draw.
      frames: number of frames, evenly over the clip, or their times in seconds.
      height: of frames in pixels.
      width: of frames in pixels.

    Returns:
      `(frames, height, width, 3)` uint8.
    """
    times = np.linspace(0, DURATION, frames) if isinstance(frames, int) else np.asarray(frames)
    background = np.array(BACKGROUNDS[scene.combination.background], np.float32)
    contrast = scene.color - background
    low, high = (height * corner for corner in extent(scene.combination))
    video = np.empty((len(times), height, width, 3), np.uint8)
    video[:] = background.astype(np.uint8)
    for frame, centroid in zip(video, scene.centroid(times), strict=True):
        x, y = centroid * height + [width / 2, height / 2]
        left, right = np.clip([math.floor(x + low[0]), math.ceil(x + high[0])], 0, width)
        top, bottom = np.clip([math.floor(y + low[1]), math.ceil(y + high[1])], 0, height)
        covered = coverage(
            scene.combination, height, np.arange(left, right) - x, np.arange(top, bottom) - y
        )
        frame[top:bottom, left:right] = background + covered[..., None] * contrast + 0.5
    return video


def coverage(
    combination: Combination, height: float, left: np.ndarray, top: np.ndarray
) -> np.ndarray:
    """Computes the share of each pixel that the shape covers, `(rows, columns)`.

    Args:
      combination: gives shape and size.
      height: of the frame in pixels.
      left: left edges of the pixels `(columns,)`, in pixels from the centroid.
      top: top edges of the pixels `(rows,)`, in pixels from the centroid.
    """
    sides = SIDES[combination.shape]
    radius = height * SIZES[combination.size] * inradius(combination.shape)
    offsets = (np.arange(SUBPIXELS) + 0.5) / SUBPIXELS
    x = (left[:, None] + offsets).ravel().astype(np.float32)
    y = (top[:, None] + offsets).reshape(-1, 1).astype(np.float32)

    def inside(depth: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + SUBPIXELS * depth, 0, 1)

    if sides:
        edges = [inside(radius - a * x - b * y) for a, b in around(sides)]
        covered = np.prod(edges, axis=0)
    else:
        covered = inside(radius - np.hypot(x, y))
    return covered.reshape(len(top), SUBPIXELS, len(left), SUBPIXELS).mean(axis=(1, 3))
