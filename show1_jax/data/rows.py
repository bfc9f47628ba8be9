"""What an index has of each clip, collected clip by clip and made into columns.

source      number of the file that has the clip; -1 for one that is named by `name` itself
offset      of the clip in its file, in bytes
size        in bytes; -1 for the whole file
hash        of the name that decides the split
name        text
captions.ends, caption, caption.characters
            how many captions all clips up to this one have, their texts and lengths
field:NAME  a number of the metadata; NaN where a clip lacks it
"""

import hashlib
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from show1_jax.data import table

FIELD = "field:"
MAX_FIELDS = 200
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ISO_DURATION = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(\d+(?:\.\d+)?)S")  # as WebVid has them


class Rows:
    """Clips, as columns that grow."""

    def __init__(self) -> None:
        self._source, self._offset, self._size = array("i"), array("q"), array("q")
        self._hash, self._captions = array("Q"), array("q")
        self._names: list[bytes] = []
        self._texts: list[bytes] = []
        self._characters = array("I")
        self._fields: dict[str, array[float]] = {}

    def __len__(self) -> int:
        """The number of clips."""
        return len(self._source)

    def add(
        self,
        name: str,
        captions: Sequence[str],
        fields: Mapping[str, float],
        *,
        split: bytes,
        source: int = -1,
        offset: int = 0,
        size: int = -1,
    ) -> None:
        """Adds a clip; `split` is the name whose hash decides the split."""
        count = len(self)
        for field, value in fields.items():
            column = self._fields.get(field)
            if column is None:
                if len(self._fields) == MAX_FIELDS:
                    continue
                column = self._fields[field] = array("d")
            column.extend([math.nan] * (count - len(column)))
            column.append(value)
        self._source.append(source)
        self._offset.append(offset)
        self._size.append(size)
        self._hash.append(int.from_bytes(hashlib.sha256(split).digest()[:8], "big"))
        self._names.append(name.encode("utf-8", "surrogatepass"))  # a path may be no text
        for caption in captions:
            self._texts.append(caption.encode("utf-8", "replace"))
            self._characters.append(len(caption))
        self._captions.append(len(self._texts))

    def write(self, writer: table.Writer, about: Mapping[str, Any]) -> None:
        """Writes a table of the clips."""
        columns: dict[str, np.ndarray] = {
            "source": np.array(self._source, np.int32),
            "offset": np.array(self._offset, np.int64),
            "size": np.array(self._size, np.int64),
            "hash": np.array(self._hash, np.uint64),
            "captions" + table.ENDS: np.array(self._captions, np.int64),
            "caption.characters": np.array(self._characters, np.uint32),
            **table.texts("name", self._names),
            **table.texts("caption", self._texts),
        }
        for field, values in self._fields.items():
            values.extend([math.nan] * (len(self) - len(values)))
            columns[FIELD + field] = np.array(values, np.float64)
        for name, column in columns.items():
            writer.add(name, column.dtype, [column])
        writer.close(about)


def numbers(metadata: Mapping[str, Any], before: str = "", depth: int = 2) -> Iterator[
    tuple[str, float]
]:  # fmt: skip
    """The numbers of metadata, as JSON gives it, with names such as `video_metadata/duration`.

    Texts that are numbers or durations (PT00H00M14S) count. So do sections within sections, and of
    lists of streams, as ffprobe writes them, the first with video.
    """
    for key, value in metadata.items():
        if isinstance(value, list) and depth:
            streams = [each for each in value if isinstance(each, dict)]
            video = [each for each in streams if each.get("codec_type") == "video"]
            value = next(iter(video or streams), None)
        if isinstance(value, dict) and depth:
            yield from numbers(value, f"{before}{key}/", depth - 1)
        elif (found := number(value)) is not None:
            yield f"{before}{key}".replace(".", "_"), found  # configs have no dots in names


def number(value: Any) -> float | None:
    """A number, or a text that is one; None for anything else."""
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return None
    if not isinstance(value, str) or len(value) > 40:
        return None
    if _NUMBER.fullmatch(value):
        return float(value)
    if found := _ISO_DURATION.fullmatch(value):
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return 3600 * hours + 60 * minutes + seconds
    return None
