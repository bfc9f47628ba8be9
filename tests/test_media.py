import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from show1_jax import media
from show1_jax.errors import InputError
from tests.conftest import golden
from tests.data.videos import read_video


def clip(frames=9, height=32, width=48):
    """A smooth moving colour pattern, so that compression has little to lose."""
    f, y, x = np.meshgrid(*map(np.arange, (frames, height, width)), indexing="ij")
    waves = [np.sin(x / 9 + f / 5), np.cos(y / 7 - f / 6), np.sin((x + y) / 11 + f / 4)]
    return np.uint8(127.5 + 100 * np.stack(waves, axis=-1))


def psnr(a, b):
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 10 * np.log10(255**2 / error)


def test_glue_between_the_stages_is_that_of_the_original_to_the_bit():
    case = golden("stage_glue")
    frames = media.to_uint8(case.inputs["video"][0].transpose(1, 2, 3, 0))
    np.testing.assert_array_equal(frames, case.outputs["tensor2vid_uint8"])
    width, height = case.config["resize_to_wh"]
    resized = media.resize_uint8(frames, height, width)
    np.testing.assert_array_equal(resized, case.outputs["resized_uint8"])
    expected = case.outputs["preprocess_video"][0].transpose(1, 2, 3, 0)
    np.testing.assert_array_equal(media.from_uint8(resized), expected)


def test_conversion_clips_truncates_and_keeps_shape():
    video = np.array([[-3.0, -1.0, 0.0], [0.999, 1.0, 4.0]])
    assert media.to_uint8(video).tolist() == [[0, 0, 127], [254, 255, 255]]
    frames = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(media.from_uint8(frames), frames / 127.5 - 1, atol=1e-6)


def test_resize_keeps_leading_axes():
    videos = np.stack([clip(), clip()])
    resized = media.resize_uint8(videos, 20, 30)
    assert resized.shape == (2, 9, 20, 30, 3)
    np.testing.assert_array_equal(resized[1], media.resize_uint8(clip(), 20, 30))


@pytest.mark.parametrize("fps", [7.5, 24, 29.97])
@pytest.mark.parametrize("size", [(32, 48), (33, 48), (32, 47), (17, 23), (2, 2)])
def test_mp4_round_trip(tmp_path, size, fps):
    frames = clip(9, *size)
    media.write_mp4(tmp_path / "clip.mp4", frames, fps)
    read, rate = read_video(tmp_path / "clip.mp4")
    assert read.shape == frames.shape
    assert read.dtype == np.uint8
    assert rate == pytest.approx(fps)
    assert psnr(read, frames) > 30
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("size", "matrix"),
    [((80, 144), "ITU601"), ((33, 47), "ITU601"), ((320, 576), "ITU601"), ((720, 1280), "ITU709")],
)
def test_colors_are_right_for_players_that_read_tags_and_for_those_that_look_at_the_size(
    tmp_path, size, matrix
):
    red = np.full((2, *size, 3), (220, 40, 40), np.uint8)
    media.write_mp4(tmp_path / "clip.mp4", red, 8)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        tags = container.streams.video[0].codec_context
        numbers = (tags.colorspace, tags.color_primaries, tags.color_trc, tags.color_range)
        frame = next(container.decode(video=0))
    by_tag = {1: "ITU709", 6: "ITU601"}[numbers[0]]
    assert numbers[1:] == (1, 1, 1)
    for assumed in (by_tag, matrix):
        shown = frame.reformat(
            format="rgb24",
            src_colorspace=assumed,
            dst_colorspace="ITU601",
            src_color_range="MPEG",
            dst_color_range="JPEG",
        ).to_ndarray()
        assert np.abs(shown.astype(int) - red[0]).max() <= 3


def test_gif_round_trip(tmp_path):
    media.write_gif(tmp_path / "clip.gif", clip(), 7.5)
    read, _ = read_video(tmp_path / "clip.gif")
    assert read.shape == clip().shape
    assert psnr(read, clip()) > 25
    with Image.open(tmp_path / "clip.gif") as image:
        times = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
    assert sum(times) == 1000 * 9 / 7.5  # ms, although GIF cannot say 133.3


def test_png_is_lossless(tmp_path):
    media.write_png(tmp_path / "frame.png", clip()[0])
    read, _ = read_video(tmp_path / "frame.png")
    np.testing.assert_array_equal(read[0], clip()[0])


def test_a_video_is_replaced_whole(tmp_path):
    path = tmp_path / "clip.mp4"
    media.write_mp4(path, clip(), 8)
    before = path.read_bytes()
    with pytest.raises(InputError):
        media.write_mp4(path, clip().astype(np.float32), 8)
    assert path.read_bytes() == before
    media.write_mp4(path, clip(3), 8)
    assert len(read_video(path)[0]) == 3


@pytest.mark.parametrize(
    "write",
    [
        lambda path: media.write_mp4(path, clip(), 8),
        lambda path: media.write_gif(path, clip(), 8),
        lambda path: media.write_png(path, clip()[0]),
    ],
)
@pytest.mark.parametrize("name", ["missing/clip", "file/clip", "folder", ""])
def test_unwritable_paths(tmp_path, monkeypatch, write, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot write") as error:
        write(name)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.parametrize(
    ("frames", "fps"),
    [(clip(), 0), (clip(), -1), (clip(), float("nan")), (clip()[0], 8), (clip()[..., :2], 8)],
)
def test_what_is_no_video_is_refused(tmp_path, frames, fps):
    with pytest.raises(InputError):
        media.write_mp4(tmp_path / "clip.mp4", frames, fps)


def test_an_mp4_is_the_same_whenever_it_is_written(tmp_path):
    """Small frames' were not."""
    frames = np.random.default_rng(0).integers(0, 255, (29, 10, 16, 3), np.uint8)
    for i in range(40):
        media.write_mp4(tmp_path / f"{i}.mp4", frames, 7.5)
    assert len({(tmp_path / f"{i}.mp4").read_bytes() for i in range(40)}) == 1
