"""How near a video comes to the true one, and how sharp it is."""

import math

import numpy as np

from show1_jax.data.moving_shapes import BACKGROUNDS, COLORS, Combination


def psnr(a: np.ndarray, b: np.ndarray, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB: `10 log10(peak**2 / mean((a - b)**2))`.

    Args:
      a: pixels of any shape.
      b: pixels of the same shape.
      peak: the range of their values; 2 for pixels in [-1, 1].

    Returns:
      The ratio, infinite where both are the same.

    Raises:
      ValueError: if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ")
    error = float(np.square(a.astype(np.float64) - b).mean())
    return 10 * math.log10(peak**2 / error) if error else math.inf


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


def edge_sharpness(video: np.ndarray) -> float:
    """How steep the edges of a video are, in grey levels per pixel.

    With `g` the length of the gradient, by differences to the neighbours below
    and to the right in all three channels, it is the mean of all `g >= max(g) / 2`
    of a frame: of what is edge, rather than the noise in between. An edge of
    contrast `c` (as RGB distance) that spreads evenly over `w` pixels has `c / w`,
    however long it is. Videos compare where their sizes are equal.

    Args:
      video: `(frames, height, width, 3)`, values 0 to 255.

    Returns:
      The mean over frames; 0 for frames without any edge.
    """
    pixels = video.astype(np.float32)
    down = pixels[:, 1:, :-1] - pixels[:, :-1, :-1]
    right = pixels[:, :-1, 1:] - pixels[:, :-1, :-1]
    length = np.sqrt((np.square(down) + np.square(right)).sum(axis=-1))
    edges = length >= length.max(axis=(1, 2), keepdims=True) / 2
    return float((length.sum(axis=(1, 2), where=edges) / edges.sum(axis=(1, 2))).mean())
