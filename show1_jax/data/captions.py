"""The caption file of a folder of video files, such as WebVid's.

The folder has one caption file, `.csv` (with a header) or `.jsonl`. For each clip it has either

    file, caption                      path relative to the folder, and caption
    videoid, page_dir, name            as in WebVid: the clip is
                                       videos/{page_dir}/{videoid}.mp4 or
                                       {videoid}.mp4, and `name` is the caption

and may have other columns, whose numbers are metadata. A path may be absolute, or lead out of the
folder. Several rows of a file are several captions of one clip.
"""

import csv
import hashlib
import io
import itertools
import json
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from etils import epath

from show1_jax.data.rows import Rows, numbers
from show1_jax.errors import InputError, why
from show1_jax.paths import in_bucket

COLUMNS = (("file", "caption"), ("videoid", "name"))
MAX_NAMED = 5  # missing files that are named in the log

Row = Mapping[str, str]


def find_caption_file(folder: epath.Path) -> epath.Path:
    """The caption file of a folder; raises InputError if it does not have exactly one."""
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder; give a folder with clips and a caption file, or with shards"
        )
    found = sorted(path for path in folder.iterdir() if path.suffix in (".csv", ".jsonl"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{folder} must have one .csv or .jsonl file of captions, but has {names}")
    return found[0]


def digest(path: epath.Path) -> str:
    """Tells caption files apart by what they say; raises InputError if one cannot be read."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while content := file.read(1 << 20):
                found.update(content)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {why(error)}") from None
    return found.hexdigest()


class Finder:
    """Finds the files of rows in a folder, and names them."""

    def __init__(self, folder: str):
        self._folder, self._remote = folder, in_bucket(folder)
        self._root = folder if self._remote else os.path.realpath(folder)
        self._real: dict[str, str] = {}  # folders without links

    def add(self, row: Row, rows: Rows) -> str:
        """Adds a row's clip to `rows`; returns "" or, if it is missing, where it should be.

        On buckets clips are taken to be there: asking about each would take long.
        """
        candidates, caption = _clip(row)
        if self._remote:
            name, split = candidates[0], posixpath.normpath(candidates[0])
        else:
            paths = [os.path.join(self._folder, name) for name in candidates]
            found = next((path for path in paths if _is_file(path)), None)
            if found is None:
                return paths[0]
            path = found
            name = os.path.relpath(path, self._folder)
            # A link counts as the file that it points to.
            split = os.path.relpath(self._without_links(path), self._root)
        metadata = {key: value for key, value in row.items() if key not in _WORDS}
        rows.add(name, [caption], dict(numbers(metadata)), split=os.fsencode(split))
        return ""

    def _without_links(self, path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        return os.path.join(self._real[folder], name)


_WORDS = {"file", "caption", "videoid", "page_dir", "name", "contentUrl"}


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def missing(paths: Sequence[str], count: int) -> str:
    """Names the first of `count` missing files."""
    names = ", ".join(paths[:MAX_NAMED])
    return names + (f" and {count - MAX_NAMED} more" if count > MAX_NAMED else "")


def read_rows(path: epath.Path) -> Iterator[Row]:
    """Yields the rows of a caption file; raises InputError if the file or a row is invalid."""
    read = _csv if path.suffix == ".csv" else _jsonl
    try:
        with io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", newline="") as file:
            for number, row, mistake in read(file):
                mistake = mistake or _mistake(row)
                if mistake:
                    raise InputError(f"{path}, line {number}: {mistake}")
                yield {str(key): str(value) for key, value in row.items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {why(error)}") from None


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


def _clip(row: Row) -> tuple[list[str], str]:
    """Returns the possible paths of a row's clip, and its caption."""
    if "file" in row and "caption" in row:
        return [row["file"]], row["caption"]
    video = f"{row['videoid']}.mp4"
    return [posixpath.join("videos", row.get("page_dir", ""), video), video], row["name"]
