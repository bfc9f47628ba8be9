"""Sheets of samples can be read."""

import numpy as np

from show1_jax.training import sheet


def clips(value):
    return np.full((2, 3, 10, 16, 3), value, np.uint8)


def test_a_picture_has_the_truth_above_what_was_made():
    drawn = sheet.picture(clips(0), clips(255), ["a red circle", "a blue square"])
    height, width = 100, 160  # ten times as large, to be at least 96 high
    assert drawn.shape == (2 * (16 + 2 * (height + 6)), 48 + 3 * (width + 6), 3)
    column = drawn[:, 48 + width // 2, 0]
    assert (column[16 : 16 + height] == 0).all()
    assert (column[16 + height + 6 : 16 + 2 * height + 6] == 255).all()
    # Captions and labels are written.
    assert (drawn[:16, :, 0] < 128).any()
    assert (drawn[16:116, :48, 0] < 128).any()
    other = sheet.picture(clips(0), clips(255), ["a red circle", "a green square"])
    assert (other[: len(other) // 2] == drawn[: len(drawn) // 2]).all()
    assert (other != drawn).any()


def test_a_video_has_all_clips_in_each_frame():
    truth = clips(0)
    truth[1, 2] = 200
    drawn = sheet.video(truth, clips(255))
    assert drawn.shape == (3, 212, 48 + 2 * 166, 3)
    assert not any(side % 2 for side in drawn.shape[1:3])
    assert (drawn[:, 50, 48 + 166 + 80, 0] == [0, 0, 200]).all()
    # What is as large as it is to be is not enlarged.
    large = np.zeros((1, 1, 96, 20, 3), np.uint8)
    assert sheet.video(large, large).shape == (1, 204, 74, 3)
