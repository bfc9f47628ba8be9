"""Decodes video files to the frames that a stage trains on."""

import dataclasses
import io
import math
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter
from etils.epath import Path
from PIL import Image, ImageOps

from show1_jax.data.clip import ROUNDING, ClipSpec, UnusableClip
from show1_jax.errors import InputError
from show1_jax.media import from_uint8, to_rgb

# PyAV before 19 needs this option to read damaged metadata.
_LENIENT: dict[str, Any] = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
)

PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow's names


def decode(
    content: bytes | BinaryIO,
    spec: ClipSpec,
    rng: np.random.Generator | None,
    window: tuple[float, float] = (0, math.inf),
) -> np.ndarray:
    """Decodes a video to the size and timing of `spec`.

    Rotates the frames and converts their colors according to the file's tags. Crops the largest
    part with the aspect ratio of `spec`, and resizes it.

    Args:
      content: of the file, or the opened file. A still picture is a clip of one frame.
      spec: size and timing.
      rng: chooses the times of the frames, and the place of the crop; None for the middle of both.
      window: seconds within the file to take the frames from.

    Returns:
      `(frames, height, width, 3)` uint8.

    Raises:
      UnusableClip: if the clip is damaged or too short.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    picture = _picture(file)
    try:
        if isinstance(picture, Image.Image):
            if spec.frames > 1:
                raise UnusableClip(f"it is a still picture, but {spec.frames} frames are needed")
            return _fit(picture, spec, _place(rng))[None]
        if picture:
            return _decode_animation(*picture, spec, rng, window)
        file.seek(0)
        with av.open(file, "r", **_LENIENT) as container:
            frames = _frames(container, spec, rng, window)
            place, reformatters = _place(rng), (VideoReformatter(), VideoReformatter())
            # A slow clip shows some frames several times; converting each once is enough.
            fitted = {
                id(frame): _fit_frame(frame, spec, place, reformatters)
                for frame in {id(frame): frame for frame in frames}.values()
            }
            return np.stack([fitted[id(frame)] for frame in frames])
    except av.FFmpegError as error:
        raise UnusableClip(f"it cannot be decoded: {error.strerror}") from None


def read_clip(path: Path, spec: ClipSpec) -> np.ndarray:
    """Reads a clip from the middle of a file. Shorter files are sampled evenly.

    Args:
      path: a video, or a still picture if `spec` has one frame.
      spec: size and timing.

    Returns:
      `(frames, height, width, 3)` fp32 in [-1, 1].

    Raises:
      InputError: if the clip cannot be read, or has fewer frames than `spec`.
    """
    try:
        content = path.read_bytes()
        try:
            frames = decode(content, spec, None)
        except UnusableClip:
            frames = decode(content, dataclasses.replace(spec, fps=None), None)
    except (OSError, UnusableClip) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot use {path} as a clip: {reason}") from None
    return from_uint8(frames)


def _frames(
    container: av.container.InputContainer,
    spec: ClipSpec,
    rng: np.random.Generator | None,
    window: tuple[float, float],
) -> list[av.VideoFrame]:
    """Decodes the frame that is shown at each time that `spec` chooses."""
    if not container.streams.video:
        raise UnusableClip("it has no video")
    stream = container.streams.video[0]
    stream.thread_count = 1  # the pipeline has its own threads
    base, rate = stream.time_base, stream.average_rate
    if base and stream.duration:
        length = float(stream.duration * base)
    else:
        length = (container.duration or 0) / av.time_base
    if not (base and rate and length):
        raise UnusableClip("it has no duration")
    first, period = float((stream.start_time or 0) * base), float(1 / rate)
    times = first + _times(spec, rng, window, length, period)

    container.seek(int(times[0] / base), stream=stream)
    frames: list[av.VideoFrame] = []
    shown: av.VideoFrame | None = None
    for frame in container.decode(stream):
        if frame.is_corrupt or frame.time is None:
            raise UnusableClip("it is damaged")
        # A frame is shown from its time on. Half a period before that, it is the nearest frame.
        while len(frames) < len(times) and times[len(frames)] < frame.time - period / 2:
            if shown is None:
                raise UnusableClip(f"it has no frame at {times[0]:.2f} s")
            frames.append(shown)
        if len(frames) == len(times):
            return frames
        shown = frame
    end = shown.time + period + ROUNDING if shown else first
    if not shown or times[-1] > end:
        raise UnusableClip(f"it ends at {end:.2f} s, but {times[-1]:.2f} s are needed")
    return frames + [shown] * (len(times) - len(frames))


def _times(
    spec: ClipSpec,
    rng: np.random.Generator | None,
    window: tuple[float, float],
    length: float,
    period: float,
) -> np.ndarray:
    """Chooses times within a window of a file of some length and time between frames."""
    begin = min(window[0], max(length - period, 0))
    length = min(window[1], length) - begin
    if spec.fps is None and round(length / period) < spec.frames:
        raise UnusableClip(
            f"it has {round(length / period)} frame(s), but {spec.frames} are needed"
        )
    return begin + spec.times(max(length - period, 0), rng)


def _decode_animation(
    frames: list[Image.Image],
    seconds: list[float],
    spec: ClipSpec,
    rng: np.random.Generator | None,
    window: tuple[float, float],
) -> np.ndarray:
    """Makes a clip of the frames of an animation, each of which is shown for some seconds."""
    ends = np.cumsum(seconds)
    times = _times(spec, rng, window, float(ends[-1]), float(ends[-1]) / len(frames))
    shown = np.minimum(np.searchsorted(ends, times + ROUNDING, side="right"), len(frames) - 1)
    place = _place(rng)
    fitted = {number: _fit(frames[number], spec, place) for number in set(shown.tolist())}
    return np.stack([fitted[number] for number in shown.tolist()])


def is_picture(path: Path) -> bool:
    """Returns whether a file is a still picture; raises InputError if it cannot be read."""
    try:
        return isinstance(_picture(io.BytesIO(path.read_bytes())), Image.Image)
    except (OSError, UnusableClip) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot use {path} as a clip: {reason}") from None


def _picture(file: BinaryIO) -> Image.Image | tuple[list[Image.Image], list[float]] | None:
    """Decodes a file with Pillow.

    Returns:
      A still picture, rotated by its tags. Frames and seconds of an animated WebP, which FFmpeg
      cannot decode. None for anything else.
    """
    try:
        picture = Image.open(file, formats=PICTURES)
        # A JPEG may have a second, small picture. Several pictures in other formats are a video.
        if getattr(picture, "is_animated", False) and picture.format not in ("JPEG", "MPO"):
            return _animation(picture) if picture.format == "WEBP" else None
        if picture.mode.startswith(("I", "F")):  # Pillow would clip these at 255
            raise UnusableClip("it is a gray picture of more than 8 bits per pixel")
        return ImageOps.exif_transpose(picture).convert("RGB")
    except Image.UnidentifiedImageError:
        return None
    # Pillow raises any of these for damaged files.
    except (
        *(OSError, ValueError, SyntaxError, EOFError, TypeError, struct.error),
        Image.DecompressionBombError,
    ) as error:
        raise UnusableClip(f"it cannot be decoded: {error}") from None


def _animation(picture: Any) -> tuple[list[Image.Image], list[float]]:
    """Frames, on white where they are transparent, and the seconds that each is shown."""
    frames, seconds = [], []
    for number in range(picture.n_frames):
        picture.seek(number)
        frame = picture.convert("RGBA")
        white = Image.new("RGBA", frame.size, "white")
        frames.append(Image.alpha_composite(white, frame).convert("RGB"))
        seconds.append(max(picture.info.get("duration", 0), 1) / 1000)
    return frames, seconds


def _fit_frame(
    frame: av.VideoFrame,
    spec: ClipSpec,
    place: np.ndarray,
    reformatters: Sequence[VideoReformatter],
) -> np.ndarray:
    """Resizes a frame so that `spec` covers as much of it as it can, turns it and crops it."""
    swap, down, right = _turn(frame)
    seen = (frame.width, frame.height) if swap else (frame.height, frame.width)
    wanted = np.array([spec.height, spec.width])
    scale = (np.array(seen) / wanted).min()
    size = np.maximum(np.round(np.array(seen) / scale).astype(int), wanted)
    height, width = map(int, size[::-1] if swap else size)
    pixels = to_rgb(frame, (height, width), reformatters)
    if swap:
        pixels = pixels.swapaxes(0, 1)
    top, left = np.round(place[::-1] * (size - wanted)).astype(int)
    return pixels[::down, ::right][top : top + spec.height, left : left + spec.width]


def _turn(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """Whether a frame's axes are swapped, and the steps, 1 or -1, to then go down and right.

    The display matrix maps (x, y) to (a x + c y, b x + d y). It is rounded to quarter turns.
    """
    # `frame.rotation` ignores mirroring. The cast is for PyAV's stubs, whose keys are strings.
    data: Any = frame.side_data.get(cast(Any, SideDataType.DISPLAYMATRIX))
    if data is None:
        return False, 1, 1
    a, b, _, c, d = (int(number) for number in np.frombuffer(bytes(data), np.int32)[:5])
    swap = abs(b) + abs(c) > abs(a) + abs(d)
    if swap:
        a, d = c, b
    return swap, -1 if d < 0 else 1, -1 if a < 0 else 1


def _place(rng: np.random.Generator | None) -> np.ndarray:
    """Chooses the place of the crop: the shares of the margin on the left and at the top."""
    return np.full(2, 0.5) if rng is None else rng.random(2)


def _fit(image: Image.Image, spec: ClipSpec, place: np.ndarray) -> np.ndarray:
    """Crops the largest part with the aspect ratio of `spec`, and resizes it."""
    scale = min(image.width / spec.width, image.height / spec.height)
    width, height = spec.width * scale, spec.height * scale
    left, top = place * [image.width - width, image.height - height]
    # Clipped because Pillow rejects a box that rounding moves outside.
    corners = [left, top, left + width, top + height]
    box = tuple(np.clip(corners, 0, [image.width, image.height] * 2))
    return np.asarray(image.resize((spec.width, spec.height), Image.Resampling.BICUBIC, box))
