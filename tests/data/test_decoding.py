"""Clips that somebody hands over to be learnt from, or inverted."""

import io
import struct

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from PIL import Image

from show1_jax import invert
from show1_jax.configs import tiny
from show1_jax.data import decoding
from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.data.decoding import decode, read_clip
from show1_jax.errors import InputError
from show1_jax.media import to_rgb, to_uint8, write_mp4
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


@pytest.fixture
def record(tmp_path):
    """Ten seconds at 25 frames per second, read into memory."""
    write_clip(tmp_path / "clip.mp4", 250, 25)
    return (tmp_path / "clip.mp4").read_bytes()


@pytest.mark.parametrize("fps", [2.0, 7.5, 25.0])
def test_frames_are_those_shown_at_the_asked_times(record, fps):
    spec = ClipSpec(8, 48, 64, fps)
    for rng in (None, *map(np.random.default_rng, range(8))):
        video = decode(record, spec, rng)
        assert (video.shape, video.dtype) == ((8, 48, 64, 3), np.uint8)
        found = numbers(video)
        exact = found[0] + np.arange(8) * 25 / fps
        assert np.abs(found - exact).max() <= 1
        if rng is None:
            assert abs(found.mean() - 124.5) <= 1


def test_random_windows_reach_both_ends(record):
    starts = [
        numbers(decode(record, ClipSpec(8, 48, 64, 1.0), np.random.default_rng(i)))[0]
        for i in range(30)
    ]
    assert min(starts) < 10
    assert max(starts) > 65
    assert max(starts) <= 74


def test_without_a_rate_the_whole_clip_is_spanned(record):
    found = numbers(decode(record, ClipSpec(4, 48, 64), None))
    np.testing.assert_array_equal(found, [0, 83, 166, 249])
    np.testing.assert_array_equal(numbers(decode(record, ClipSpec(250, 48, 64), None)), range(250))


def test_a_slower_clip_repeats_frames(tmp_path):
    write_clip(tmp_path / "slow.mp4", 10, 5)
    record = (tmp_path / "slow.mp4").read_bytes()
    found = numbers(decode(record, ClipSpec(10, 48, 64, 10.0), None))
    assert set(np.diff(found)) == {0, 1}


def test_the_crop_covers_and_moves_only_in_training(tmp_path):
    # Red grows to the right and green downwards.
    y, x = np.mgrid[:60, :200]
    frame = np.stack([x * 255 / 200, y * 255 / 60, 0 * x], -1).astype(np.uint8)
    write_mp4(tmp_path / "clip.mp4", np.stack([frame] * 4), 4)
    record = (tmp_path / "clip.mp4").read_bytes()
    spec = ClipSpec(2, 30, 30, 4.0)
    middle = decode(record, spec, None).astype(float)
    # 60 x 60 of 60 x 200: all of the height, the middle 30% of the width.
    np.testing.assert_allclose(middle[0, 15, [0, -1], 0] / 255, [0.355, 0.645], atol=0.03)
    np.testing.assert_allclose(middle[0, [0, -1], 15, 1] / 255, [0.01, 0.99], atol=0.03)
    places = []
    for seed in range(20):
        video = decode(record, spec, np.random.default_rng(seed)).astype(float)
        np.testing.assert_allclose(video[0, 15, -1, 0] - video[0, 15, 0, 0], 74, atol=8)
        np.testing.assert_allclose(video[0], video[1], atol=8)
        places.append(video[0, 15, 0, 0] / 255)
    assert min(places) < 0.15
    assert max(places) > 0.55


def test_unusable_clips_say_why(record):
    cases = {
        "it is too short: 9.96 s, but 14.00 s are needed": (record, 0.5),
        "it cannot be decoded: ": (record[: len(record) // 2], 2.0),
        "cannot be decoded: Invalid data": (b"not a video", 2.0),
    }
    for message, (data, fps) in cases.items():
        with pytest.raises(UnusableClip, match=message):
            decode(data, ClipSpec(8, 40, 64, fps), None)


def test_damage_within_a_clip_is_noticed(record):
    start, end = record.index(b"mdat") + 900, record.index(b"moov")
    reasons = set()
    for place in range(start, end, (end - start) // 20):
        data = bytearray(record)
        data[place : place + 4] = b"\xff" * 4
        with pytest.raises(UnusableClip) as error:
            decode(bytes(data), ClipSpec(250, 48, 64), None)
        reasons.add(str(error.value))
    # Decoders conceal some damage, and then only mark the frame.
    assert "it is damaged" in reasons


def test_damaged_metadata_does_not_matter(record):
    data = record.replace(b"isomiso2", b"iso\xb5iso2")
    video = decode(data, ClipSpec(2, 48, 64), None)
    assert list(numbers(video)) == [0, 249]


def test_a_file_cut_short_is_noticed(tmp_path):
    # Matroska says at its start how long it is, and can be read without its end.
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        for _ in range(50):
            frame = av.VideoFrame.from_ndarray(np.zeros((480, 640, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = (tmp_path / "clip.mkv").read_bytes()
    assert len(decode(data, ClipSpec(50, 24, 32), None)) == 50
    with pytest.raises(UnusableClip, match=r"ends at .*, but 4\.90 s are needed"):
        decode(data[: len(data) * 3 // 4], ClipSpec(50, 24, 32), None)


def test_any_size_fits_in_any_other():
    rng = np.random.default_rng(0)
    for width, height, *wanted in [(325, 833, 1535, 386), *rng.integers(1, 99, (200, 4))]:
        image = Image.new("RGB", (int(width), int(height)), (9, 9, 9))
        for place in (np.full(2, 0.5), np.zeros(2), np.ones(2)):
            fitted = decoding._fit(image, ClipSpec(1, *map(int, wanted)), place)
            assert fitted.shape == (*wanted, 3)
            assert (fitted == 9).all()


@pytest.mark.parametrize("values", [(0, 40, 64), (8, 40, -1), (8, 40, 64, 0.0), (8, 40, 64, -1)])
def test_impossible_specs_are_refused(values):
    with pytest.raises(InputError, match="must be"):
        ClipSpec(*values)


def test_an_animated_webp_is_a_clip():
    frames = [np.zeros((48, 64, 4), np.uint8) for _ in range(20)]
    for number, frame in enumerate(frames):
        for bit in range(8):
            frame[:, 8 * bit : 8 * bit + 8] = 255 if number >> bit & 1 else (0, 0, 0, 255)
    frames[3][:] = 0  # transparent, which is shown as white
    images, file = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    images[0].save(
        file, "WEBP", save_all=True, append_images=images[1:], duration=100, lossless=True
    )
    content = file.getvalue()
    assert list(numbers(decode(content, ClipSpec(4, 48, 64, 2.0), None))) == [2, 7, 12, 17]
    found = numbers(decode(content, ClipSpec(20, 48, 64), None))
    assert list(found) == [0, 1, 2, 255, *range(4, 20)]
    found = numbers(decode(content, ClipSpec(5, 48, 64, 10.0), None, (1.0, 1.5)))
    assert list(found) == [10, 11, 12, 13, 14]
    for spec, reason in (
        (ClipSpec(21, 48, 64), r"it has 20 frame\(s\), but 21 are needed"),
        (ClipSpec(9, 48, 64, 2.0), "it is too short: 1.90 s, but 4.00 s are needed"),
    ):
        with pytest.raises(UnusableClip, match=reason):
            decode(content, spec, None)
    with pytest.raises(UnusableClip, match="it cannot be decoded"):
        decode(content[:-100], ClipSpec(20, 48, 64), None)


def test_frames_are_resized_as_pillow_does(record):
    """Wherever the crop is, within half a pixel of the result, and some levels."""
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8).repeat(30, 0).repeat(30, 1)
    frame = av.VideoFrame.from_ndarray(pattern, "rgb24").reformat(
        format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG"
    )
    exact = to_rgb(frame)
    for size in ((72, 96), (24, 32), (400, 500)):
        image = Image.fromarray(exact).resize(size[::-1], Image.Resampling.BICUBIC)
        difference = np.abs(to_rgb(frame, size).astype(int) - np.asarray(image))
        assert difference.mean() < 4
    reformatters = (VideoReformatter(), VideoReformatter())
    for width, height in rng.integers(1, 99, (50, 2)).tolist():
        for place in (np.zeros(2), np.ones(2)):
            fitted = decoding._fit_frame(frame, ClipSpec(1, height, width), place, reformatters)
            assert fitted.shape == (height, width, 3)
            assert np.abs(fitted.astype(int).mean() - exact.mean()) < 60
