import math

import numpy as np
import pytest

from show1_jax.evaluation.metrics import edge_sharpness, psnr
from show1_jax.shapes import drawing
from show1_jax.shapes.paths import centroid_error
from tests.shapes.clips import blur, noisy, scenes


def test_psnr():
    a = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(a, a) == math.inf
    # Unsigned bytes must not wrap around: 0 - 255 is 255 away, not 1.
    assert psnr(a, np.full_like(a, 255)) == pytest.approx(0)
    assert psnr(np.full_like(a, 51), a) == pytest.approx(20 * math.log10(5))
    b = a.copy()
    b[0, 0, 0, 0] = 96  # one of 96 values: a mean square of 96
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 96))
    assert psnr(a / 255, b / 255, peak=1) == pytest.approx(psnr(a, b))
    with pytest.raises(ValueError, match="must be equal"):
        psnr(a, b[:1])


def test_centroid_error():
    path = np.array([[0, 0], [1, 1], [np.nan, np.nan]])
    assert centroid_error(path, np.array([[3, 4], [1, 0], [5, 5]])) == pytest.approx((5 + 1) / 2)
    assert centroid_error(path, path) == 0
    assert math.isnan(centroid_error(path, np.full((3, 2), np.nan)))


def edge(values):
    """A frame of columns with these values in one channel."""
    video = np.zeros((2, 5, len(values), 3), np.uint8)
    video[..., 1] = values
    return video


def test_edge_sharpness_by_hand():
    assert edge_sharpness(edge([0, 0, 0, 0])) == 0
    assert edge_sharpness(edge([0, 0, 200, 200])) == pytest.approx(200)
    assert edge_sharpness(edge([0, 100, 200, 200])) == pytest.approx(100)
    # Steps of 100, 50 and 49, the last of which is too small to count.
    assert edge_sharpness(edge([0, 100, 150, 199])) == pytest.approx(75)
    grey = np.repeat(edge([0, 90, 90])[..., 1:2], 3, axis=-1)
    assert edge_sharpness(grey) == pytest.approx(90 * math.sqrt(3))


def test_edge_sharpness_falls_with_blur_and_hardly_heeds_noise():
    for scene in scenes(5):
        video = drawing.render(scene, 3, 80, 128)
        sharp, soft, softer = (edge_sharpness(v) for v in (video, blur(video, 1), blur(video, 2)))
        assert sharp > 1.5 * soft > 2 * softer
        spoilt = edge_sharpness(noisy(video, np.random.default_rng(0), 2))
        assert spoilt == pytest.approx(sharp, rel=0.05)
