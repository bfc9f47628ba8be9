"""Clips that somebody hands over to be learnt from, or inverted."""

import numpy as np
import pytest
from PIL import Image

from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import read_clip
from show1_jax.errors import InputError
from show1_jax.media import to_uint8, write_mp4
from tests.data.videos import numbers, write_clip


def test_frames_are_of_the_middle_at_the_rate_asked_for(tmp_path):
    write_clip(tmp_path / "clip.mp4", 101, 25)
    found = read_clip(tmp_path / "clip.mp4", ClipSpec(3, 24, 32, 1.0))
    assert found.dtype == np.float32
    assert list(numbers(to_uint8(found))) == [25, 50, 75]


def test_a_short_clip_is_taken_whole(tmp_path):
    write_clip(tmp_path / "clip.mp4", 21, 25)
    found = read_clip(tmp_path / "clip.mp4", ClipSpec(3, 24, 32, 1.0))
    assert list(numbers(to_uint8(found))) == [0, 10, 20]


def test_a_clip_of_another_shape_is_cut_and_not_squeezed(tmp_path):
    video = np.zeros((8, 96, 48, 3), np.uint8)
    video[:, 36:60, 12:36] = 255  # a square in the middle of an upright clip
    write_mp4(tmp_path / "clip.mp4", video, 8)
    seen = read_clip(tmp_path / "clip.mp4", ClipSpec(2, 40, 64))[0, ..., 0] > 0
    height, width = seen.any(axis=1).sum(), seen.any(axis=0).sum()
    assert width == pytest.approx(height, abs=1)


def test_what_is_no_clip_is_told_in_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    write_clip(tmp_path / "short.mp4", 7, 25)
    for name, reason in (
        ("missing.mp4", "No such file"),
        ("text.mp4", "it does not decode: Invalid data"),
        ("empty.mp4", "it does not decode"),
        ("folder.mp4", "Is a directory"),
        ("image.png", "it "),
        ("short.mp4", r"it has 7 frame\(s\), not 8"),
    ):
        with pytest.raises(InputError, match=f"cannot use .*{name} as a clip: {reason}") as error:
            read_clip(tmp_path / name, ClipSpec(8, 40, 64, 2.0))
        assert "\n" not in str(error.value)
