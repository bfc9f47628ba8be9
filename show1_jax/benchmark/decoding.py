"""Clips that a core decodes in a second, by us and by others."""

import importlib
import io
import time
from collections.abc import Callable, Iterator

import av
import numpy as np
from ml_collections import ConfigDict

from show1_jax import stages
from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import decode

NAME = "decoding"
SIZES = ((360, 640), (720, 1280))
SECONDS, FPS = 10, 30

Decoder = Callable[[bytes, ClipSpec], object]


def measure(config: ConfigDict, calls: int) -> None:
    """Prints figures for H.264 clips of ten seconds, for what each part of a config trains on.

    "PyAV" decodes the same frames and does nothing with them: it is what there is to reach. All
    decode with one thread, and the time is the processor's, whatever else it does.

    Args:
      config: as in `configs/show1.py`.
      calls: how often each is called; the fastest counts.
    """
    parts = {part.from_config(config).training_clip: name for name, part in stages.parts().items()}
    for height, width in SIZES:
        content = _clip(height, width)
        for spec, part in parts.items():
            seconds = {
                name: min(_seconds(decoder, content, spec) for _ in range(calls))
                for name, decoder in _decoders()
            }
            fps = f" at {spec.fps:g} fps" if spec.fps else ""
            figures = ", ".join(f"{name} {1 / value:.1f}" for name, value in seconds.items())
            print(
                f"{height}p to {spec.frames} x {spec.height} x {spec.width}{fps} ({part}): clips a "
                f"second per core: {figures}; ours {seconds['PyAV'] / seconds['ours']:.0%} of PyAV",
                flush=True,
            )


def _decoders() -> Iterator[tuple[str, Decoder]]:
    yield "PyAV", _pyav
    yield "ours", lambda content, spec: decode(content, spec, None)
    for name, decoder in (("torchcodec", _torchcodec), ("decord", _decord)):
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):  # torchcodec without FFmpeg's libraries
            continue
        yield name, decoder


def _pyav(content: bytes, spec: ClipSpec) -> None:
    with av.open(io.BytesIO(content), "r") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        times = _times(spec)
        container.seek(int(times[0] / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time >= times[-1]:
                return


def _torchcodec(content: bytes, spec: ClipSpec) -> object:
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(content, num_ffmpeg_threads=1)
    return decoder.get_frames_played_at(list(_times(spec)))


def _decord(content: bytes, spec: ClipSpec) -> object:
    reader = importlib.import_module("decord").VideoReader(io.BytesIO(content), num_threads=1)
    return reader.get_batch([round(time * FPS) for time in _times(spec)])


def _times(spec: ClipSpec) -> np.ndarray:
    return spec.times(SECONDS - 1 / FPS, None)


def _seconds(decoder: Decoder, content: bytes, spec: ClipSpec) -> float:
    begin = time.process_time()
    decoder(content, spec)
    return time.process_time() - begin


def _clip(height: int, width: int) -> bytes:
    """A pattern that moves over the picture, as x264 writes it by default."""
    file = io.BytesIO()
    large = np.random.default_rng(0).integers(0, 256, (height // 8 + 40, width // 8 + 40, 3))
    pattern = large.astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for shift in range(SECONDS * FPS):
            picture = np.ascontiguousarray(pattern[shift:, shift:][:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
