"""A folder of captioned video files as a dataset: WebVid, or anybody's own.

The folder holds one caption file, `.csv` (with a header) or `.jsonl`, that has
for each clip either

    file, caption                      the path from the folder, and the words
    videoid, page_dir, name            as WebVid ships: the clip is
                                       videos/{page_dir}/{videoid}.mp4,
                                       or {videoid}.mp4, and `name` the words

and may have more. A path may lead out of the folder, or be absolute. The files are
stored as they are and decoded when read.
"""

import csv
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TextIO

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from show1_jax.data.clip import ClipSpec
from show1_jax.data.decoding import decode
from show1_jax.errors import InputError

COLUMNS = (("file", "caption"), ("videoid", "name"))
NAMED = 5  # missing files
VALIDATION = 0.05  # of the files


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
        the caption file cannot be read, lacks a column or has a wrong row.
    """
    caption_file = _caption_file(folder)
    clips: list[Clip] = []
    missing: list[Path] = []
    for row in _rows(caption_file):
        paths, words = _clip(folder, row)
        path = next((path for path in paths if os.path.isfile(path)), None)
        if path:
            clips.append(Clip(path, words))
        else:
            missing.append(paths[0])
    names = ", ".join(map(str, missing[:NAMED]))
    names += f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    if missing and clips:
        total = len(missing) + len(clips)
        logging.warning("%d of %d clips are missing and skipped: %s", len(missing), total, names)
    if not clips:
        reason = f"all {len(missing)} files are missing: {names}" if missing else "it lists none"
        raise InputError(f"{caption_file} gives no clips: {reason}")
    return clips


def split(clips: list[Clip], folder: Path) -> dict[str, list[Clip]]:
    """Clips for training and for validation, by file: all captions of one are on one side.

    Args:
      clips: of `list_clips`.
      folder: the folder of the clips.

    Returns:
      The clips of `train`, and of `validation`: 5 % of the files, one at least, which
      the hash of their names chooses, whatever their order.

    Raises:
      InputError: if there are fewer than two files.
    """
    files = {clip.path: clip.path.resolve() for clip in clips}  # links are the file they lead to
    root = folder.resolve()
    names = {file: os.path.relpath(file, root) for file in files.values()}
    if len(names) < 2:
        raise InputError(
            f"{folder} has one clip only, {clips[0].path}: training needs another to validate on "
            "(the motion of a single clip is learnt by configs/customize.py)"
        )
    order = sorted(names, key=lambda file: hashlib.sha256(os.fsencode(names[file])).digest())
    held_out = set(order[: max(1, round(VALIDATION * len(order)))])
    sides: dict[str, list[Clip]] = {"train": [], "validation": []}
    for clip in clips:
        sides["validation" if files[clip.path] in held_out else "train"].append(clip)
    return sides


def captions(folder: Path) -> Iterator[str]:
    """All captions of a folder, of missing files as well: a dataset built before may hold them."""
    return (_clip(folder, row)[1] for row in _rows(_caption_file(folder)))


class VideoFolderConfig(tfds.core.BuilderConfig):
    """Which folder to build from; a changed caption file makes a new dataset."""

    def __init__(self, folder: str | Path):
        """Arguments and exceptions as `list_clips`."""
        self.folder = Path(folder)
        path = _caption_file(self.folder)
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        super().__init__(name=f"{self.folder.resolve().name}-{digest[:8]}")


class VideoFolder(tfds.core.GeneratorBasedBuilder):
    """Video files and captions of one folder, in `train` and `validation`; see `split`."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "All in `train`.",
        "2.0.0": "Split by file.",
    }

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
        folder = self.builder_config.folder
        sides = split(list_clips(folder), folder)
        return {name: self._generate_examples(clips) for name, clips in sides.items()}

    def _generate_examples(self, clips: list[Clip]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, clip in enumerate(clips):
            name = os.path.relpath(clip.path, self.builder_config.folder)
            try:
                content = clip.path.read_bytes()
            except OSError as error:
                raise InputError(f"{clip.path} cannot be read: {error.strerror}") from None
            yield index, {"name": name, "caption": clip.caption, "video": content}


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
    read = _csv if path.suffix == ".csv" else _jsonl
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row, mistake in read(file):
                mistake = mistake or _mistake(row)
                if mistake:
                    raise InputError(f"{path}, line {number}: {mistake}")
                yield {str(key): str(value) for key, value in row.items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _csv(file: TextIO) -> Iterator[tuple[int, Any, str]]:
    """The number of each row's first line, the row, and what is wrong with it, if anything."""
    # A quote that is opened and not closed would swallow the rows after it without `strict`.
    rows = csv.reader(file, strict=True, skipinitialspace=True)
    advice = 'put a caption that has commas or quotes in quotes: "a ""red"" bike, on a street"'
    line = 1
    try:
        header = next(rows, [])
        line = rows.line_num + 1
        for fields in rows:
            mistake = ""
            if len(fields) != len(header):
                mistake = f"has {len(fields)} field(s), the header has {len(header)}; {advice}"
            if fields:
                yield line, dict(zip(header, fields, strict=False)), mistake
            line = rows.line_num + 1
    except csv.Error as error:
        yield line, None, f"{error}; {advice}"


def _jsonl(file: TextIO) -> Iterator[tuple[int, Any, str]]:
    """As `_csv`, for JSON lines."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            row, mistake = None, ""
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                mistake = f"is no JSON: {error}"
            yield number, row, mistake


def _mistake(row: Any) -> str:
    """What is wrong with a row, or nothing."""
    found = {} if not isinstance(row, dict) else {k: v for k, v in row.items() if v is not None}
    if not any(found.keys() >= set(columns) for columns in COLUMNS):
        return (
            f"has {', '.join(map(str, found)) or 'nothing'}, "
            "needs file and caption, or videoid and name"
        )
    for key in (*itertools.chain(*COLUMNS), "page_dir"):
        value = found.get(key, "")
        if not isinstance(value, str | int) or isinstance(value, bool):
            return f"{key} is {type(value).__name__}, not text"
        if re.search("[\ud800-\udfff]", str(value)):
            return f"{key} is not text: it has half a surrogate pair"
    return ""


def _clip(folder: Path, row: Mapping[str, str]) -> tuple[list[Path], str]:
    """Where a row's clip may be, and its caption."""
    if "file" in row and "caption" in row:
        return [folder / row["file"]], row["caption"]
    video = f"{row['videoid']}.mp4"
    pages = folder / "videos" / row.get("page_dir", "")
    return [pages / video, folder / video], row["name"]
