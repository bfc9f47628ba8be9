"""Datasets that are read where they are: shards, or folders of clips."""

import dataclasses
import functools
import io
import math
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from show1_jax.data import index as indexes
from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.data.decoding import decode
from show1_jax.data.files import forget, read_file, read_range
from show1_jax.data.filters import CAPTION_LENGTH, Filter, find_field, kept
from show1_jax.data.table import ENDS, Table
from show1_jax.errors import InputError
from show1_jax.paths import in_bucket

VALIDATION_SHARE = 0.05  # of the files
MAX_WHOLE = 1 << 24  # bytes that are read at once; of a larger file, what is needed
BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which clips of a dataset to use.

    Attributes:
      filters: that clips have to pass.
      clip_seconds: each file is as many clips as it has stretches of so many seconds; 0 for one.
    """

    filters: tuple[Filter, ...] = ()
    clip_seconds: float = 0.0


class Clips:
    """A dataset that has been indexed.

    Attributes:
      where: what the user calls it.
      identity: changes when the clips do.
      warnings: about what could not be used when it was indexed.
      messages: how many clips each filter removes.
    """

    def __init__(self, files: indexes.Files, index: Table, selection: Selection):
        """Chooses clips.

        Raises:
          InputError: if there is no such field, or no clip is left.
        """
        self.where, self.identity = files.where, indexes.identity(index)
        self._index, self._selection = index, selection
        self.warnings: list[str] = index.about["notes"]
        fields = indexes.fields(index)
        self._kept, self.messages = kept(selection.filters, index, fields, self.where)
        self._durations: str | None = None
        if selection.clip_seconds:
            self._durations = find_field("duration", fields, self.where)

    def split(self, name: str) -> "Split":
        """The clips for "train" or "validation".

        5 % of the files, at least one, are for validation. A hash of their names decides, so that
        neither their order nor the filters matter.

        Raises:
          InputError: if there are fewer than two files, or no clip is left.
        """
        held_out = self._index.columns["hash"] <= self._last_held_out
        side = held_out if name == "validation" else ~held_out
        chosen = np.flatnonzero(side & self._kept).astype(np.uint32)
        if not len(chosen):
            raise InputError(f"{self.where}: the filters leave no clip for {name}; widen them")
        return Split(self._index, chosen, self._stretches(chosen), self._captions_within())

    @functools.cached_property
    def _last_held_out(self) -> np.uint64:
        """The largest hash of what is for validation."""
        ordered = np.sort(self._index.columns["hash"])  # np.unique takes twenty times as long
        different = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
        if len(different) < 2:
            raise InputError(
                f"{self.where} has only one clip, {self._index.text('name', 0).decode()}; add "
                "another one for validation, or use configs/customize.py, which learns the motion "
                "of a single clip"
            )
        return different[max(1, round(VALIDATION_SHARE * len(different))) - 1]

    def captions(self) -> Iterator[str]:
        """All captions that may be used."""
        low, high = self._captions_within()
        lengths, ends = (self._index.columns[n] for n in ("caption.characters", "captions" + ENDS))
        many = 1 << 16  # clips
        for first in range(0, len(ends), many):
            begin = int(ends[first - 1]) if first else 0
            kept = self._kept[first : first + many]
            counts = np.diff(ends[first : first + many], prepend=begin)
            within = np.repeat(kept, counts)
            length = lengths[begin : begin + len(within)]
            within &= (length >= low) & (length <= high)
            texts = self._index.texts("caption", begin, begin + len(within))
            yield from (text.decode("utf-8", "replace") for text in compress(texts, within))

    def _captions_within(self) -> tuple[float, float]:
        ranges = [f for f in self._selection.filters if f.field == CAPTION_LENGTH]
        return (ranges[0].low, ranges[0].high) if ranges else (0, math.inf)

    def _stretches(self, chosen: np.ndarray) -> "Stretches | None":
        if self._durations is None:
            return None
        durations = indexes.fields(self._index)[self._durations][chosen]
        seconds = self._selection.clip_seconds
        counts = np.maximum(np.nan_to_num(durations) / seconds + 1e-6, 1).astype(np.int64)
        return Stretches(seconds, np.cumsum(counts))


@dataclasses.dataclass(frozen=True)
class Stretches:
    """Which stretch of which clip an item is.

    Attributes:
      seconds: of each, but for the last of a clip, which goes on to its end.
      ends: number of stretches of all clips up to each.
    """

    seconds: float
    ends: np.ndarray

    def find(self, item: int) -> tuple[int, tuple[float, float]]:
        """The number of an item's clip, and its begin and end in seconds."""
        clip = int(np.searchsorted(self.ends, item, side="right"))
        number = item - (int(self.ends[clip - 1]) if clip else 0)
        last = item + 1 == self.ends[clip]
        begin = number * self.seconds
        return clip, (begin, math.inf if last else begin + self.seconds)


class Split(Sequence[Mapping[str, Any]]):
    """The records of a split, which say where clips are; see `read`. Threads may share it."""

    def __init__(
        self,
        index: Table,
        chosen: np.ndarray,
        stretches: Stretches | None,
        characters: tuple[float, float],
    ):
        """Takes the clips with some numbers, and their captions of some lengths."""
        self._index, self._chosen, self._stretches = index, chosen, stretches
        self._characters = characters

    def __len__(self) -> int:
        """The number of records."""
        return len(self._chosen) if self._stretches is None else int(self._stretches.ends[-1])

    def __getitem__(self, item: Any) -> Any:
        """Name, captions, file, offset, size (-1 for the whole file) and window of a clip."""
        if not 0 <= item < len(self):
            raise IndexError(item)
        window = (0.0, math.inf)
        if self._stretches is not None:
            item, window = self._stretches.find(item)
        clip = int(self._chosen[item])
        columns, name = self._index.columns, self._index.text("name", clip)
        source = int(columns["source"][clip])
        if source >= 0:
            path = self._index.about["files"][source]
        else:
            folder = self._index.about["folder"]
            join = posixpath.join if in_bucket(folder) else os.path.join
            path = join(folder, name.decode("utf-8", "surrogatepass"))
        return {
            "name": name + (f" from {window[0]:g} s on".encode() if window[0] else b""),
            "captions": self._captions(clip),
            "path": path,
            "offset": int(columns["offset"][clip]),
            "size": int(columns["size"][clip]),
            "window": window,
        }

    def _captions(self, clip: int) -> list[bytes]:
        ends = self._index.columns["captions" + ENDS]
        rows = range(int(ends[clip - 1]) if clip else 0, int(ends[clip]))
        low, high = self._characters
        lengths = self._index.columns["caption.characters"]
        return [self._index.text("caption", row) for row in rows if low <= lengths[row] <= high]


def open_clips(where: str, data_dir: epath.Path, selection: Selection, team: indexes.Team) -> Clips:
    """Opens a dataset, and indexes it if that has not been done yet.

    Args:
      where: a folder with shards or with clips and a caption file, or names of shards.
      data_dir: for indexes.
      selection: which clips to use.
      team: all processes, each of which has to call this.

    Raises:
      InputError: if there are no clips, a field is unknown, or something cannot be read.
    """
    forget()
    files = indexes.find_files(where)
    return Clips(files, indexes.open_index(files, data_dir, team), selection)


def read(record: Mapping[str, Any], spec: ClipSpec, rng: np.random.Generator | None) -> np.ndarray:
    """Reads and decodes the clip of a record; see `decoding.decode`."""
    path, offset, size = record["path"], record["offset"], record["size"]
    try:
        if size < 0 and not in_bucket(path):
            size = os.path.getsize(path)
        if size < 0:
            content: bytes | BinaryIO = read_file(path)
        elif size > MAX_WHOLE:
            content = io.BufferedReader(_Member(path, offset, size), BLOCK)
        else:
            content = read_range(path, offset, size)
        return decode(content, spec, rng, record["window"])
    except FileNotFoundError:
        raise UnusableClip(f"{path} is missing") from None


class _Member(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, path: str, offset: int, size: int):
        self._path, self._offset, self._size, self._position = path, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        many = max(min(len(buffer), self._size - self._position), 0)
        if many:
            content = read_range(self._path, self._offset + self._position, many)
            buffer[:many] = content
            self._position += many
        return many
