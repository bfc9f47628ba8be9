"""A dataset of captioned video files in a folder, such as WebVid.

The folder has one caption file, `.csv` (with a header) or `.jsonl`. For each clip it has either

    file, caption                      path relative to the folder, and caption
    videoid, page_dir, name            as in WebVid: the clip is
                                       videos/{page_dir}/{videoid}.mp4 or
                                       {videoid}.mp4, and `name` is the caption

and may have other columns. A path may be absolute, or lead out of the folder. The dataset stores
the files as they are, and decodes them when it reads them.
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
MAX_NAMED = 5  # missing files that are named in the log
VALIDATION_SHARE = 0.05  # of the files


class Clip(NamedTuple):
    """A video file and its caption."""

    path: Path
    caption: str


def list_clips(folder: Path) -> list[Clip]:
    """Lists the clips of a folder. Clips whose files are missing are logged and left out.

    Args:
      folder: as in the docstring of this module.

    Raises:
      InputError: if the folder does not exist, does not have exactly one caption file or has no
        clips, or if the caption file cannot be read, lacks a column or has an invalid row.
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
    names = ", ".join(map(str, missing[:MAX_NAMED]))
    names += f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    if missing and clips:
        total = len(missing) + len(clips)
        logging.warning("%d of %d clips are missing and skipped: %s", len(missing), total, names)
    if not clips:
        reason = f"all {len(missing)} files are missing: {names}" if missing else "it lists none"
        raise InputError(f"{caption_file} gives no clips: {reason}")
    return clips


def split(clips: list[Clip], folder: Path) -> dict[str, list[Clip]]:
    """Splits clips into "train" and "validation".

    Files are split, so that all captions of a file are in one split. The hashes of their names
    decide, so that their order does not matter.

    Args:
      clips: of `list_clips`.
      folder: of the clips.

    Returns:
      The clips by split. "validation" has 5 % of the files, and at least one.

    Raises:
      InputError: if there are fewer than two files.
    """
    files = {
        clip.path: clip.path.resolve() for clip in clips
    }  # a link counts as the file that it points to
    root = folder.resolve()
    names = {file: os.path.relpath(file, root) for file in files.values()}
    if len(names) < 2:
        raise InputError(
            f"{folder} has only one clip, {clips[0].path}; add another one for validation, or use "
            "configs/customize.py, which learns the motion of a single clip"
        )
    order = sorted(names, key=lambda file: hashlib.sha256(os.fsencode(names[file])).digest())
    held_out = set(order[: max(1, round(VALIDATION_SHARE * len(order)))])
    sides: dict[str, list[Clip]] = {"train": [], "validation": []}
    for clip in clips:
        sides["validation" if files[clip.path] in held_out else "train"].append(clip)
    return sides


def captions(folder: Path) -> Iterator[str]:
    """Yields all captions, even of missing files, which a dataset built earlier may have."""
    return (_clip(folder, row)[1] for row in _rows(_caption_file(folder)))


class VideoFolderConfig(tfds.core.BuilderConfig):
    """The folder to build from. A changed caption file makes a new dataset."""

    def __init__(self, folder: str | Path):
        """Arguments and exceptions as in `list_clips`."""
        self.folder = Path(folder)
        path = _caption_file(self.folder)
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        super().__init__(name=f"{self.folder.resolve().name}-{digest[:8]}")


class VideoFolder(tfds.core.GeneratorBasedBuilder):
    """The video files and captions of one folder; see `split` for the splits."""

    VERSION = tfds.core.Version("3.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "All in `train`.",
        "2.0.0": "Split by file.",
        "3.0.0": "One record for each file, with all of its captions.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "name": tfds.features.Text(doc="path of the file, from the folder"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
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
        words: dict[Path, list[str]] = {}
        for clip in clips:
            words.setdefault(clip.path, []).append(clip.caption)
        for index, (path, own) in enumerate(words.items()):
            name = os.path.relpath(path, self.builder_config.folder)
            try:
                content = path.read_bytes()
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}") from None
            yield index, {"name": name, "captions": own, "video": content}


def read(record: Mapping[str, Any], spec: ClipSpec, rng: np.random.Generator | None) -> np.ndarray:
    """Decodes a stored record; see `decoding.decode`."""
    return decode(record["video"], spec, rng)


def _caption_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder with clips and a caption file")
    found = sorted(path for path in folder.iterdir() if path.suffix in (".csv", ".jsonl"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{folder} must have one .csv or .jsonl file of captions, but has {names}")
    return found[0]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Yields the rows of a caption file, checked."""
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
    """Yields for each row the number of its first line, the row, and an error message or ""."""
    # Without `strict`, a quote that is not closed would swallow the rows after it.
    rows = csv.reader(file, strict=True, skipinitialspace=True)
    advice = 'quote captions that have commas or quotes: "a ""red"" bike, on a street"'
    line = 1
    try:
        header = next(rows, [])
        line = rows.line_num + 1
        for fields in rows:
            mistake = ""
            if len(fields) != len(header):
                mistake = f"has {len(fields)} field(s), but the header has {len(header)}; {advice}"
            if fields:
                yield line, dict(zip(header, fields, strict=False)), mistake
            line = rows.line_num + 1
    except csv.Error as error:
        yield line, None, f"{error}; {advice}"


def _jsonl(file: TextIO) -> Iterator[tuple[int, Any, str]]:
    """Like `_csv`, for JSON lines."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            row, mistake = None, ""
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                mistake = f"is not JSON: {error}"
            yield number, row, mistake


def _mistake(row: Any) -> str:
    """Returns an error message for an invalid row, and "" for a valid one."""
    found = {} if not isinstance(row, dict) else {k: v for k, v in row.items() if v is not None}
    if not any(found.keys() >= set(columns) for columns in COLUMNS):
        return (
            f"has {', '.join(map(str, found)) or 'nothing'}, "
            "but needs file and caption, or videoid and name"
        )
    for key in (*itertools.chain(*COLUMNS), "page_dir"):
        value = found.get(key, "")
        if not isinstance(value, str | int) or isinstance(value, bool):
            return f"{key} is {type(value).__name__}, but must be text"
        if re.search("[\ud800-\udfff]", str(value)):
            return f"{key} is not valid text: it has half of a surrogate pair"
    return ""


def _clip(folder: Path, row: Mapping[str, str]) -> tuple[list[Path], str]:
    """Returns the possible paths of a row's clip, and its caption."""
    if "file" in row and "caption" in row:
        return [folder / row["file"]], row["caption"]
    video = f"{row['videoid']}.mp4"
    pages = folder / "videos" / row.get("page_dir", "")
    return [pages / video, folder / video], row["name"]
