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
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import decode
from show1_jax.errors import InputError

COLUMNS = ({"file", "caption"}, {"videoid", "name"})


class Clip(NamedTuple):
    """A video file and what it shows."""

    path: Path
    caption: str


def list_clips(folder: Path) -> list[Clip]:
    """The clips of a folder whose files are there; the others are named in the log.

    Args:
      folder: what the module describes.

    Raises:
      InputError: if there is no folder, not just one caption file or no clip, or if
        the caption file cannot be read or lacks a column.
    """
    caption_file = _caption_file(folder)
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
    return (_clip(folder, row)[1] for row in _rows(_caption_file(folder)))


class VideoFolderConfig(tfds.core.BuilderConfig):
    """Which folder to build from; a changed caption file makes a new dataset."""

    def __init__(self, folder: str | Path):
        """Arguments and exceptions as `list_clips`."""
        self.folder = Path(folder)
        digest = hashlib.sha256(_caption_file(self.folder).read_bytes()).hexdigest()
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
        clips = list_clips(self.builder_config.folder)
        return {"train": self._generate_examples(clips)}

    def _generate_examples(self, clips: list[Clip]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, clip in enumerate(clips):
            name = os.path.relpath(clip.path, self.builder_config.folder)
            yield index, {"name": name, "caption": clip.caption, "video": clip.path.read_bytes()}


def read(record: Mapping[str, Any], spec: ClipSpec, rng: np.random.Generator | None) -> np.ndarray:
    """What `spec` wants of a stored record; see `decoding.decode`."""
    return decode(record["video"], spec, rng)


def _caption_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one with clips and a caption file")
    found = sorted(path for path in folder.iterdir() if path.suffix in (".csv", ".jsonl"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{folder} must have one .csv or .jsonl of captions, but has {names}")
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
