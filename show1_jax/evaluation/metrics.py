"""How near a video comes to the true one, and how sharp it is."""

import math

import numpy as np


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
