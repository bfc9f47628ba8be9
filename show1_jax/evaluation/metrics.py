"""Metrics of any video: similarity to a true video, and sharpness."""

import math

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray, peak: float = 255.0) -> float:
    """Computes the peak signal-to-noise ratio: `10 log10(peak**2 / mean((a - b)**2))`.

    Args:
      a: pixels of any shape.
      b: pixels of the same shape.
      peak: range of the values, such as 2 for pixels in [-1, 1].

    Returns:
      The ratio in dB; infinity if both are equal.

    Raises:
      ValueError: if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, but b has shape {b.shape}; they must be equal")
    error = float(np.square(a.astype(np.float64) - b).mean())
    return 10 * math.log10(peak**2 / error) if error else math.inf


def edge_sharpness(video: np.ndarray) -> float:
    """Computes the mean steepness of the edges in a video, in gray levels per pixel.

    Let `g` be the length of the gradient at a pixel: the differences to the neighbours below and
    to the right, in all three channels. The sharpness of a frame is the mean of all
    `g >= max(g) / 2`, which are edges and not noise. An edge of contrast `c` (RGB distance) and a
    width of `w` pixels has sharpness `c / w`, whatever its length. Compare only videos of equal
    size.

    Args:
      video: `(frames, height, width, 3)`, values 0 to 255.

    Returns:
      The mean over frames, in which frames without edges count as 0.
    """
    pixels = video.astype(np.float32)
    down = pixels[:, 1:, :-1] - pixels[:, :-1, :-1]
    right = pixels[:, :-1, 1:] - pixels[:, :-1, :-1]
    length = np.sqrt((np.square(down) + np.square(right)).sum(axis=-1))
    edges = length >= length.max(axis=(1, 2), keepdims=True) / 2
    return float((length.sum(axis=(1, 2), where=edges) / edges.sum(axis=(1, 2))).mean())
