"""Clips on disk whose frames say which they are."""

import io
import json
import tarfile

import av
import numpy as np
from etils import epath

from show1_jax.data.clips import Selection, open_clips
from show1_jax.data.filters import read_filters
from show1_jax.data.index import Team
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


def opened(where, data_dir, filters=None, clip_seconds=0.0, team=None):
    """A dataset that is read where it is."""
    selection = Selection(read_filters(filters or {}, "filters"), clip_seconds)
    return open_clips(str(where), epath.Path(data_dir), selection, team or Team())


def write_shard(path, clips, kind=tarfile.USTAR_FORMAT):
    """Writes a tar file.

    Args:
      path: of the file.
      clips: by key the contents of the members by extension, as bytes, text or what JSON takes.
      kind: of tar file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as shard:
        for key, members in clips.items():
            for extension, content in members.items():
                if not isinstance(content, bytes | str):
                    content = json.dumps(content)
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
