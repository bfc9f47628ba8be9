"""A folder of captioned video files as a dataset: WebVid, or anybody's own.

The folder holds one caption file, `.csv` (with a header) or `.jsonl`, that has
for each clip either

    file, caption                      the path from the folder, and the words
    videoid, page_dir, name            as WebVid ships: the clip is
                                       videos/{page_dir}/{videoid}.mp4,
                                       or {videoid}.mp4, and `name` the words

and may have more. The files are stored as they are and decoded when read.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from show1_jax.data.clip import ROUNDING, ClipSpec, UnusableClip
from show1_jax.errors import InputError

COLUMNS = ({"file", "caption"}, {"videoid", "name"})

# PyAV reads damaged metadata by itself from version 19 on, and before it when told to.
_LENIENT: dict[str, Any] = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
)


class Clip(NamedTuple):
    """A video file and what it shows."""

    path: Path
    caption: str


def list_clips(folder: Path, captions: str | None = None) -> list[Clip]:
    """The clips of a folder whose files are there; the others are named in the log.

    Args:
      folder: what the module describes.
      captions: name of the caption file, if the folder has several.

    Raises:
      InputError: if there is no folder, no caption file or no clip, or if the
        caption file cannot be read or lacks a column.
    """
    caption_file = _caption_file(folder, captions)
    clips: list[Clip] = []
    missing = 0
    for row in _rows(caption_file):
        paths, words = _clip(folder, row)
        path = next((path for path in paths if path.is_file()), None)
        if path:
            clips.append(Clip(path, words))
        else:
            missing += 1
            logging.warning("%s is missing and skipped", paths[0])
    if missing:
        logging.warning("%d of %d clips are missing", missing, missing + len(clips))
    if not clips:
        reason = f"all {missing} files are missing" if missing else "it lists none"
        raise InputError(f"{caption_file} gives no clips: {reason}")
    return clips


def captions(folder: Path) -> Iterator[str]:
    """All captions of a folder, of missing files as well: a dataset built before may hold them."""
    return (_clip(folder, row)[1] for row in _rows(_caption_file(folder, None)))


class VideoFolderConfig(tfds.core.BuilderConfig):
    """Which folder to build from; a changed caption file makes a new dataset."""

    def __init__(self, folder: str | Path, captions: str | None = None):
        """Arguments and exceptions as `list_clips`."""
        self.folder, self.captions = Path(folder), captions
        digest = hashlib.sha256(_caption_file(self.folder, captions).read_bytes()).hexdigest()
        super().__init__(name=f"{self.folder.resolve().name}-{digest[:8]}")


class VideoFolder(tfds.core.GeneratorBasedBuilder):
    """Video files and captions of one folder, all in the split `train`.

    Parts are read as `train[:95%]` and the like.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "name": tfds.features.Text(doc="path of the file, from the folder"),
            "caption": tfds.features.Text(),
            "video": tfds.features.Tensor(shape=(), dtype=np.object_, doc="the file's bytes"),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=__doc__, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        clips = list_clips(self.builder_config.folder, self.builder_config.captions)
        return {"train": self._generate_examples(clips)}

    def _generate_examples(self, clips: list[Clip]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, clip in enumerate(clips):
            name = os.path.relpath(clip.path, self.builder_config.folder)
            yield index, {"name": name, "caption": clip.caption, "video": clip.path.read_bytes()}


def read(record: Mapping[str, Any], spec: ClipSpec, rng: np.random.Generator | None) -> np.ndarray:
    """Decodes what `spec` wants of a stored record: `(frames, height, width, 3)` uint8.

    The largest part with the right aspect ratio is cut out, at a place that
    `rng` chooses (the middle without one), and resized.

    Raises UnusableClip if the clip is broken or too short.
    """
    try:
        with av.open(io.BytesIO(record["video"]), "r", **_LENIENT) as container:
            frames = _frames(container, spec, rng)
            place = np.full(2, 0.5) if rng is None else rng.random(2)
            return np.stack([_fit(frame.to_image(), spec, place) for frame in frames])
    except av.FFmpegError as error:
        raise UnusableClip(f"it does not decode: {error.strerror}") from None


def _frames(
    container: av.container.InputContainer, spec: ClipSpec, rng: np.random.Generator | None
) -> list[av.VideoFrame]:
    """For each time that `spec` asks for, the frame that is shown then."""
    if not container.streams.video:
        raise UnusableClip("it has no video")
    stream = container.streams.video[0]
    stream.thread_count = 1  # the pipeline has threads of its own
    base, rate = stream.time_base, stream.average_rate
    if base and stream.duration:
        length = float(stream.duration * base)
    else:
        length = (container.duration or 0) / av.time_base
    if not (base and rate and length):
        raise UnusableClip("it does not say how long it is")
    first, period = float((stream.start_time or 0) * base), float(1 / rate)
    times = first + spec.times(max(length - period, 0), rng)

    container.seek(int(times[0] / base), stream=stream)
    frames: list[av.VideoFrame] = []
    shown: av.VideoFrame | None = None
    for frame in container.decode(stream):
        if frame.is_corrupt or frame.time is None:
            raise UnusableClip("it is damaged")
        # A frame is shown from its time on; half a period makes that the nearest one.
        while len(frames) < len(times) and times[len(frames)] < frame.time - period / 2:
            if shown is None:
                raise UnusableClip(f"it has no frame at {times[0]:.2f} s")
            frames.append(shown)
        if len(frames) == len(times):
            return frames
        shown = frame
    end = shown.time + period + ROUNDING if shown else first
    if not shown or times[-1] > end:
        raise UnusableClip(f"it ends at {end:.2f} s where {times[-1]:.2f} s are needed")
    return frames + [shown] * (len(times) - len(frames))


def _fit(image: Image.Image, spec: ClipSpec, place: np.ndarray) -> np.ndarray:
    """Cuts out the largest part with the right aspect ratio, and resizes it."""
    scale = min(image.width / spec.width, image.height / spec.height)
    width, height = spec.width * scale, spec.height * scale
    left, top = place * [image.width - width, image.height - height]
    # Clipped, because Pillow refuses a box that rounding puts outside.
    corners = [left, top, left + width, top + height]
    box = tuple(np.clip(corners, 0, [image.width, image.height] * 2))
    return np.asarray(image.resize((spec.width, spec.height), Image.Resampling.BICUBIC, box))


def _caption_file(folder: Path, captions: str | None) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one with clips and a caption file")
    if captions is not None:
        if not (folder / captions).is_file():
            raise InputError(f"{folder / captions} does not exist")
        return folder / captions
    found = sorted(path for path in folder.iterdir() if path.suffix in (".csv", ".jsonl"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(
            f"{folder} must have one .csv or .jsonl of captions, or say which: {names}"
        )
    return found[0]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Checked rows of a caption file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = (json.loads(line) for line in file if line.strip())
            for number, row in enumerate(
                csv.DictReader(file) if path.suffix == ".csv" else lines, start=1
            ):
                items = row.items() if isinstance(row, dict) else ()
                found = {str(key): str(value) for key, value in items if value is not None}
                if not any(found.keys() >= columns for columns in COLUMNS):
                    raise InputError(
                        f"{path}, clip {number}: has {', '.join(found) or 'nothing'}, "
                        "needs file and caption, or videoid and name"
                    )
                yield found
    except (OSError, csv.Error, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}") from None


def _clip(folder: Path, row: Mapping[str, str]) -> tuple[list[Path], str]:
    """Where a row's clip may be, and its caption."""
    if "file" in row and "caption" in row:
        return [folder / row["file"]], row["caption"]
    video = f"{row['videoid']}.mp4"
    pages = folder / "videos" / row.get("page_dir", "")
    return [pages / video, folder / video], row["name"]
