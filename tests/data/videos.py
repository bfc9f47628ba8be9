"""Clips on disk whose frames say which they are."""

import av
import numpy as np

from show1_jax.media import write_mp4

BITS = 8


def write_clip(path, frames, fps, height=48, width=64):
    """Writes a clip in whose top left the number of the frame stands, as white bars."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    for number, frame in enumerate(clip):
        for bit in range(BITS):
            frame[:, 8 * bit : 8 * bit + 8] = 255 if number >> bit & 1 else 0
    write_mp4(path, clip, fps)


def numbers(video):
    """The numbers that frames carry, whatever their size."""
    bars = video[:, video.shape[1] // 2, :, 0].reshape(len(video), BITS, -1)
    middle = bars[:, :, bars.shape[-1] // 2] > 127
    return (middle << np.arange(BITS)).sum(axis=1)


def read_video(path):
    """All frames of a file, and its frames per second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate)
