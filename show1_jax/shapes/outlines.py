"""Measures how round circles are, and how much outlines change from frame to frame."""

import numpy as np

from show1_jax.shapes.judge import track

MIN_SHARE = 0.25  # of the median area; what is smaller is a speck
ROUNDS = 300  # of the search for the smallest circle; its error is below 1 / ROUNDS of the radius


def roundness(video: np.ndarray, stretch: float = 1.0) -> np.ndarray:
    """Computes the area of the shape over that of the smallest circle around it, in each frame.

    It is 1 for a circle, 0.64 for a square and 0.41 for an equilateral triangle.

    Args:
      video: `(frames, height, width, 3)` uint8.
      stretch: factor by which the content is wider than drawn; see `judge.measure`.

    Returns:
      `(frames,)`; 0 in frames that show no shape.
    """
    found, shapes = np.zeros(len(video)), track(video, stretch)
    if shapes is not None:
        for frame in np.flatnonzero(_shown(shapes.areas)):
            points = _outline(shapes.crops[frame]) / [stretch, 1]
            circle = np.pi * _enclosing_radius(points) ** 2
            found[frame] = shapes.areas[frame] / stretch / circle
    return found


def flicker(video: np.ndarray, stretch: float = 1.0) -> float:
    """Computes the mean change of coverage between frames, in the shape's own frame.

    Returns:
      The sum of absolute changes over the shape's area, as a mean over all pairs of neighbouring
      frames that show a shape; NaN if there are none.
    """
    shapes = track(video, stretch)
    if shapes is None:
        return float("nan")
    own = np.stack([_centred(*each) for each in zip(shapes.crops, shapes.offsets, strict=True)])
    shown = _shown(shapes.areas)
    seen = shown[1:] & shown[:-1]
    changes = np.abs(np.diff(own, axis=0)).sum(axis=(1, 2))[seen] / shapes.areas[:-1][seen]
    return float(changes.mean()) if changes.size else float("nan")


def _shown(areas: np.ndarray) -> np.ndarray:
    """Returns which frames show a shape and not a speck, `(frames,)`."""
    usual = np.median(areas[areas > 0]) if (areas > 0).any() else np.inf
    return areas >= MIN_SHARE * usual


def _centred(crop: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Moves a crop by less than a pixel, so that the centroid is in its middle pixel's middle."""
    spectrum = np.fft.rfft2(crop)
    x, y = np.fft.rfftfreq(crop.shape[1]), np.fft.fftfreq(crop.shape[0])[:, None]
    moved = spectrum * np.exp(2j * np.pi * (x * offset[0] + y * offset[1]))
    return np.fft.irfft2(moved, crop.shape)


def _outline(crop: np.ndarray) -> np.ndarray:
    """Returns the points between pixels where coverage crosses one half, `(points, 2)`: x and y."""
    points = []
    for axis in (1, 0):
        values = np.moveaxis(crop, axis, 1)
        first, second = values[:, :-1] - 0.5, values[:, 1:] - 0.5
        lines, places = np.nonzero(first * second < 0)
        share = first[lines, places] / (first[lines, places] - second[lines, places])
        own = np.stack([places + share, lines.astype(float)], axis=-1)
        points.append(own if axis == 1 else own[:, ::-1])
    return np.concatenate(points)


def _enclosing_radius(points: np.ndarray) -> float:
    """Returns the radius of the smallest circle around points (Badoiu and Clarkson, 2003)."""
    centre = points.mean(axis=0)
    for number in range(1, ROUNDS + 1):
        farthest = points[np.square(points - centre).sum(axis=1).argmax()]
        centre = centre + (farthest - centre) / (number + 1)
    return float(np.sqrt(np.square(points - centre).sum(axis=1).max()))
