"""Clips that somebody hands over to be learnt from, or inverted."""

import struct

import av
import numpy as np
import pytest
from PIL import Image

from show1_jax import invert
from show1_jax.configs import tiny
from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import decode, read_clip
from show1_jax.errors import InputError
from show1_jax.media import to_uint8, write_mp4
from show1_jax.stages import FirstFrame, Keyframes
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
    Image.effect_noise((64, 64), 9).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-500])
    Image.new("I;16", (8, 8)).save(tmp_path / "depth.png")
    write_clip(tmp_path / "short.mp4", 7, 25)
    for name, reason in (
        ("missing.mp4", "No such file"),
        ("text.mp4", "it cannot be decoded: Invalid data"),
        ("empty.mp4", "it cannot be decoded"),
        ("folder.mp4", "Is a directory"),
        ("image.png", "it is a still picture, but 8 frames are needed"),
        ("cut.jpg", "it cannot be decoded: "),
        ("depth.png", "it is a gray picture of more than 8 bits per pixel"),
        ("short.mp4", r"it has 7 frame\(s\), but 8 are needed"),
    ):
        with pytest.raises(InputError, match=f"cannot use .*{name} as a clip: {reason}") as error:
            read_clip(tmp_path / name, ClipSpec(8, 40, 64, 2.0))
        assert "\n" not in str(error.value)


COLORS = np.array([[[220, 40, 40], [40, 200, 40]], [[40, 40, 220], [230, 230, 230]]])
CORNERS = COLORS.repeat(24, axis=0).repeat(32, axis=1).astype(np.uint8)  # 48 x 64


def stored_with(content, a, b, c, d):
    """An mp4 whose track header says that (x, y) is shown at (a x + c y, b x + d y)."""
    place = content.index(b"tkhd") + 44
    numbers = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    return content[:place] + struct.pack(">9i", *numbers) + content[place + 36 :]


@pytest.mark.parametrize(
    "matrix",
    [
        *[(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)],  # 0, 90, … clockwise
        *[(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],  # mirrored
    ],
)
def test_a_clip_is_upright_however_it_is_stored(tmp_path, matrix):
    write_mp4(tmp_path / "clip.mp4", np.stack([CORNERS] * 4), 4)
    content = stored_with((tmp_path / "clip.mp4").read_bytes(), *matrix)
    a, b, c, d = matrix
    # Where the four corners go, counted from the least place.
    moved = {(a * x + c * y, b * x + d * y): COLORS[y, x] for y in (0, 1) for x in (0, 1)}
    left, top = (min(place[axis] for place in moved) for axis in (0, 1))
    expected = np.array([[moved[left + x, top + y] for x in (0, 1)] for y in (0, 1)])
    height, width = (48, 64) if a else (64, 48)
    for rng in (None, np.random.default_rng(0)):
        video = decode(content, ClipSpec(2, height, width), rng)
        middles = video[:, [height // 4, height * 3 // 4]][:, :, [width // 4, width * 3 // 4]]
        assert np.abs(middles.astype(int) - expected).max() < 6


def test_a_clip_without_a_sense_of_up_is_taken_as_it_is(tmp_path):
    write_mp4(tmp_path / "clip.mp4", np.stack([CORNERS] * 4), 4)
    content = (tmp_path / "clip.mp4").read_bytes()
    spec = ClipSpec(2, 48, 64)
    damaged = decode(stored_with(content, 0, 0, 0, 0), spec, None)
    np.testing.assert_array_equal(damaged, decode(content, spec, None))


def tagged(matrix, number, full, size, path):
    """Writes a clip in the colors of `CORNERS` by some matrix and range, and says so."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"crf": "8"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if full else "yuv420p"
        stream.codec_context.colorspace = number
        stream.codec_context.color_range = 0 if number == 2 else 2 if full else 1
        picture = Image.fromarray(CORNERS).resize(size[::-1], Image.Resampling.NEAREST)
        frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24").reformat(
            format=stream.pix_fmt,
            dst_colorspace=matrix,
            dst_color_range="JPEG" if full else "MPEG",
        )
        for _ in range(2):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("matrix", "number", "full", "size"),
    [
        ("ITU709", 1, False, (48, 64)),
        ("ITU709", 1, True, (48, 64)),
        ("ITU601", 5, False, (48, 64)),
        ("ITU601", 6, False, (720, 1280)),
        ("ITU601", 6, True, (720, 1280)),
        ("SMPTE240M", 7, False, (48, 64)),
        # Untagged, as players take it.
        ("ITU601", 2, False, (576, 720)),
        ("ITU709", 2, False, (720, 1280)),
        ("ITU709", 2, False, (536, 1280)),
    ],
)
def test_colors_are_those_that_the_clip_says(tmp_path, matrix, number, full, size):
    tagged(matrix, number, full, size, tmp_path / "clip.mp4")
    video = decode((tmp_path / "clip.mp4").read_bytes(), ClipSpec(1, 48, 64), None)
    assert np.abs(video[0, 12::24, 16::32].astype(int) - COLORS).max() < 6


def test_a_picture_is_a_clip_of_one_frame(tmp_path):
    spec = ClipSpec(1, 48, 64, 7.5)
    Image.fromarray(CORNERS).save(tmp_path / "a.png")
    Image.fromarray(CORNERS).save(tmp_path / "a.jpg", quality=95)
    write_mp4(tmp_path / "a.mp4", CORNERS[None], 4)
    for name in ("a.png", "a.jpg", "a.mp4"):
        found = to_uint8(read_clip(tmp_path / name, spec))
        assert found.shape == (1, 48, 64, 3)
        assert np.abs(found[0, 12::24, 16::32].astype(int) - COLORS).max() < 6
    # For the first frame, of which one is enough; what needs more says so.
    config = tiny.get_config()
    config.super_resolution.update(height=48, width=64)
    assert invert._read(FirstFrame.from_config(config), tmp_path / "a.png").shape == (1, 48, 64, 3)
    with pytest.raises(InputError, match="it is a still picture, but 8 frames are needed"):
        invert._read(Keyframes.from_config(config), tmp_path / "a.png")
    # Cameras do not turn pictures, but say how to.
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    Image.fromarray(np.rot90(CORNERS)).save(tmp_path / "b.jpg", quality=95, exif=exif)
    found = to_uint8(read_clip(tmp_path / "b.jpg", spec))
    assert np.abs(found[0, 12::24, 16::32].astype(int) - COLORS).max() < 6
