import numpy as np
import pytest

from show1_jax.diffusion.threshold import dynamic_threshold

VIDEO = np.random.default_rng(0).normal(size=(2, 3, 6, 8, 3)).astype(np.float32)


def test_each_frame_is_divided_by_its_own_quantile():
    clean = np.asarray(dynamic_threshold(VIDEO, 0.9, 10.0))
    for batch, frame in np.ndindex(2, 3):
        s = np.quantile(np.abs(VIDEO[batch, frame]), 0.9)
        assert 1 < s < 10
        expected = np.clip(VIDEO[batch, frame], -s, s) / s
        np.testing.assert_allclose(clean[batch, frame], expected, rtol=1e-5, atol=1e-6)


def test_frames_do_not_see_each_other():
    loud = VIDEO.copy()
    loud[0, 1] *= 5
    before, after = dynamic_threshold(VIDEO, 0.95, 10.0), dynamic_threshold(loud, 0.95, 10.0)
    np.testing.assert_array_equal(np.delete(before[0], 1, 0), np.delete(after[0], 1, 0))


def test_a_frame_in_range_is_left_alone():
    quiet = np.clip(VIDEO, -1, 1)
    np.testing.assert_array_equal(dynamic_threshold(quiet, 0.995, 1.5), quiet)


@pytest.mark.parametrize("maximum", [1.0, 1.5, 100.0])
def test_results_lie_in_range(maximum):
    assert np.abs(dynamic_threshold(7 * VIDEO, 0.95, maximum)).max() <= 1


def test_maximum_1_is_a_clip():
    np.testing.assert_array_equal(dynamic_threshold(VIDEO, 0.95, 1.0), np.clip(VIDEO, -1, 1))


def test_brightness_beyond_the_quantile_does_not_matter():
    # Scaling a frame whose quantile is between 1 and the maximum cancels out.
    np.testing.assert_allclose(
        dynamic_threshold(2 * VIDEO, 0.95, 100.0),
        dynamic_threshold(4 * VIDEO, 0.95, 100.0),
        rtol=1e-5,
        atol=1e-6,
    )
