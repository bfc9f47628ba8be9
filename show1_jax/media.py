"""Reads and writes videos and images. A video is `(frames, height, width, 3)` uint8."""

import io
from collections.abc import Sequence
from fractions import Fraction
from os import PathLike
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from etils.epath import Path
from numpy.typing import ArrayLike
from PIL import Image

from show1_jax.errors import InputError
from show1_jax.files import open_bytes, write_whole


def to_uint8(video: ArrayLike) -> np.ndarray:
    """Converts pixels in [-1, 1] to uint8 of the same shape: clips, then TRUNCATES.

    The released cascade truncates between its stages. Rounding would give other videos.
    """
    video = np.clip(np.asarray(video, np.float32), -1, 1)
    return ((video + 1) / 2 * 255).astype(np.uint8)


def from_uint8(frames: np.ndarray) -> np.ndarray:
    """Converts uint8 to fp32 pixels in [-1, 1] of the same shape."""
    return frames.astype(np.float32) / 255 * 2 - 1


def resize_uint8(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes frames `(..., h, w, 3)` to `(..., height, width, 3)` with Pillow's bicubic filter."""
    flat = frames.reshape(-1, *frames.shape[-3:])
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
        for frame in flat
    ]
    return np.stack(resized).reshape(*frames.shape[:-3], height, width, 3)


# PyAV's names for the matrices of ITU-T H.273.
_MATRICES = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020"}
_FULL_RANGE = 2
_BICUBIC = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


def yuv_matrix(width: int, height: int) -> str:
    """Returns the YUV matrix that players assume for a video of this size without a color tag.

    Returns:
      Name of a member of PyAV's `Colorspace`: "ITU601" (BT.601) or "ITU709" (BT.709).
    """
    # This is mpv's rule. VLC looks only at the height (709 above 576 rows). Firefox and Chromium
    # use 709 from 720 rows. All agree on SD, which includes the cascade's 144x80 to 576x320, and
    # on 720 rows and more.
    return "ITU709" if width >= 1280 or height > 576 else "ITU601"


def write_mp4(path: str | PathLike[str], frames: np.ndarray, fps: float) -> None:
    """Writes an H.264 video at high quality.

    Even sizes are stored as yuv420p, which plays everywhere. Odd sizes are stored as yuv444p,
    because yuv420p does not allow them. The file has a color tag: the matrix of `yuv_matrix`.

    Args:
      path: of the file.
      frames: `(frames, height, width, 3)` uint8.
      fps: frames per second; may be fractional.

    Raises:
      InputError: if the frames are not a video, or the file cannot be written.
    """
    _check(frames, fps)
    height, width = frames.shape[1:3]
    matrix = yuv_matrix(width, height)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264",
            rate=Fraction(fps).limit_denominator(1001),
            # With mbtree, the same small frames do not always give the same file.
            options={"crf": "14", "preset": "medium", "mbtree": "0"},
        )
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        _tag(stream.codec_context, matrix)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format=stream.pix_fmt, dst_colorspace=matrix, dst_color_range="MPEG"
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    write_bytes(path, file.getvalue())


def read_mp4(path: str | PathLike[str]) -> np.ndarray:
    """Reads all frames of a video, `(frames, height, width, 3)` uint8.

    Raises:
      InputError: if the file cannot be read.
    """
    try:
        with open_bytes(path) as file, av.open(file) as container:
            frames = [to_rgb(frame) for frame in container.decode(video=0)]
    except (OSError, av.FFmpegError, IndexError) as error:
        raise InputError(f"{path} cannot be read: {_reason(error)}") from None
    if not frames:
        raise InputError(f"{path} cannot be read: it has no frames")
    return np.stack(frames)


def to_rgb(
    frame: av.VideoFrame,
    size: tuple[int, int] | None = None,
    reformatters: Sequence[VideoReformatter] = (),
) -> np.ndarray:
    """Converts a decoded frame to `(height, width, 3)` uint8, according to its color tags.

    Args:
      frame: of a video.
      size: height and width to resize to before that, which takes a fraction of the time of
        resizing RGB. The result is within a few levels of Pillow's bicubic filter.
      reformatters: two, which keep what the frames of one video have in common.
    """
    first, second = reformatters or (VideoReformatter(), VideoReformatter())
    height, width = size or (frame.height, frame.width)
    colors: dict[str, Any] = {}
    if not (frame.format.is_rgb or frame.format.has_palette):
        matrix = _MATRICES.get(frame.colorspace, yuv_matrix(frame.width, frame.height))
        colors = {
            "src_colorspace": Colorspace[matrix],
            "src_color_range": "JPEG" if frame.color_range == _FULL_RANGE else "MPEG",
        }
        if size is not None:
            # With as much chroma as luma. Otherwise it is resized as coarsely as it is stored.
            same = {key.replace("src", "dst"): value for key, value in colors.items()}
            frame = first.reformat(
                frame, width, height, "yuv444p", interpolation=_BICUBIC, **colors, **same
            )
        colors |= {"dst_colorspace": Colorspace.ITU601, "dst_color_range": "JPEG"}
    filter = None if size is None else _BICUBIC
    return second.reformat(
        frame, width, height, "rgb24", interpolation=filter, **colors
    ).to_ndarray()


def _tag(codec: av.VideoCodecContext, matrix: str) -> None:
    """Tags a video with its colors, by the numbers of ITU-T H.273."""
    codec.colorspace = {"ITU709": 1, "ITU601": 6}[matrix]
    # sRGB has the primaries of BT.709. The primaries of SD television would shift the colors in
    # players that convert them. The transfer function is tagged as that of BT.709, as is usual.
    codec.color_primaries = codec.color_trc = 1
    codec.color_range = 1  # 16 to 235


def write_gif(path: str | PathLike[str], frames: np.ndarray, fps: float) -> None:
    """Writes a GIF that loops forever; equal neighbouring frames become one longer frame.

    Args:
      path: of the file.
      frames: `(frames, height, width, 3)` uint8.
      fps: frames per second.

    Raises:
      InputError: if the frames are not a video, or the file cannot be written.
    """
    _check(frames, fps)
    # GIF counts in 1/100 s. Rounding each frame's end keeps errors from adding up.
    ends = np.round(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    first, *rest = (Image.fromarray(frame) for frame in frames)
    durations = [10 * int(duration) for duration in np.diff(ends)]
    _save(path, first, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def write_png(path: str | PathLike[str], image: np.ndarray) -> None:
    """Writes an image, `(height, width, 3)` uint8; raises InputError if that fails."""
    _save(path, Image.fromarray(image), "PNG")


def new_figure(width: float, height: float) -> Any:
    """Makes a matplotlib figure, in inches; raises InputError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing needs matplotlib; run pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def check_figure(path: Path) -> None:
    """Checks that a picture can be written, before a long computation, and makes its folder.

    Raises:
      InputError: if matplotlib is missing or cannot write this type of file, or the folder
        cannot be made.
    """
    kinds = new_figure(1, 1).canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in kinds:
        raise InputError(f"cannot write {path}; give a name that ends in .png, .svg or .pdf")
    make_folder(path.parent)


def write_figure(path: Path, figure: Any) -> None:
    """Writes a matplotlib figure to a file; raises InputError if that fails."""
    file = io.BytesIO()
    try:
        figure.savefig(file, dpi=150, format=path.suffix[1:] or "png")
    except ValueError as error:
        raise InputError(f"cannot write {path}: {error}") from None
    write_bytes(path, file.getvalue())


def make_folder(path: Path) -> None:
    """Makes a folder and its parents unless they exist; raises InputError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def _check(frames: np.ndarray, fps: float) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise InputError(
            f"a video must be (frames, height, width, 3) uint8, not {frames.shape} {frames.dtype}"
        )
    if not fps > 0:
        raise InputError(f"fps is {fps}, but must be more than 0")


def _save(path: str | PathLike[str], image: Image.Image, kind: str, **options: Any) -> None:
    file = io.BytesIO()
    image.save(file, kind, **options)
    write_bytes(path, file.getvalue())


def write_bytes(path: str | PathLike[str], content: bytes) -> None:
    """Writes a file atomically, so that nobody sees half of it.

    Raises:
      InputError: if the file cannot be written.
    """
    try:
        write_whole(path, content)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
