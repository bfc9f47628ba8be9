"""WebDataset shards, as video2dataset writes them: tar files with a few members for each clip.

    00000.tar       0001.mp4, 0001.txt, 0001.json, 0002.mp4, …

Members of one clip follow each other, and have the same name up to the first dot. The first video
or picture is the clip. `.txt` is its caption. `.json` has metadata, and may have `caption` or
`captions`, a text or a list of texts. Only the small members are read here.
"""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from show1_jax.data.files import bucket, read_range
from show1_jax.data.rows import Rows, numbers
from show1_jax.errors import InputError, why
from show1_jax.paths import in_bucket

VIDEOS = {"mp4", "m4v", "mov", "webm", "mkv", "avi", "mpg", "mpeg", "ogv", "gif", "webp"}
VIDEOS |= {"png", "jpg", "jpeg", "bmp", "tif", "tiff"}  # clips of one frame
BLOCK = 512  # of a tar file
MAX_SMALL = 1 << 20  # bytes of a caption or of metadata
READ_AHEAD = 1 << 16
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PATTERN = re.compile(r"[*?\[{]")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A tar file, as it was when it was found; `version` changes when it does."""

    path: str
    size: int
    version: str


class _Damage(Exception):
    """Where a shard cannot be read any further, and why."""


def find_shards(where: str) -> list[Shard]:
    """Finds shards.

    Args:
      where: a folder with `*.tar`, or names such as `clips/*.tar` or `clips/{00000..00099}.tar`.

    Returns:
      The shards by name; none if `where` is a folder without any.

    Raises:
      InputError: if names match no file, or one of a range is missing.
    """
    names = list(_expanded(where))
    if len(names) > 1 or not _PATTERN.search(where):
        folder = epath.Path(where)
        if not where.endswith(".tar") and len(names) == 1:
            return _matching(f"{where.rstrip('/')}/*.tar") if folder.is_dir() else []
        return _stat(names)
    if not (found := _matching(where)):
        raise InputError(f"{where} matches no file; give the names of shards (.tar)")
    return found


def scan(shard: Shard, number: int, rows: Rows) -> list[str]:
    """Adds the clips of a shard to `rows`.

    Args:
      shard: to read.
      number: of the shard, for `Rows.add`.
      rows: to add to.

    Returns:
      Warnings, one line each.
    """
    reader, notes = _Reader(shard), []
    before, mute = len(rows), 0
    try:
        for key, members in _clips(_members(reader)):
            video = next((m for extension, m in members.items() if _is_video(extension)), None)
            if video is None:
                continue
            captions, fields = _described(reader, members)
            if not captions:
                mute += 1
                continue
            rows.add(
                f"{shard.path.rpartition('/')[2]}/{key}", captions, fields,
                split=key.encode("utf-8", "surrogateescape"),
                source=number, offset=video[0], size=video[1],
            )  # fmt: skip
    except _Damage as damage:
        used = len(rows) - before
        notes.append(f"{shard.path} is damaged: it {damage}; {used} clips before that are used")
    except FileNotFoundError:
        notes.append(f"{shard.path} is gone")
    if mute:
        notes.append(f"{shard.path}: {mute} clips have no caption and are left out")
    return notes


def _expanded(where: str) -> Iterator[str]:
    """The names of a brace range such as `{000..099}`."""
    found = _RANGE.search(where)
    if not found:
        yield where
        return
    first, last = found.groups()
    for value in range(int(first), int(last) + 1):
        yield from _expanded(f"{where[: found.start()]}{value:0{len(first)}}{where[found.end() :]}")


def _matching(pattern: str) -> list[Shard]:
    if in_bucket(pattern):
        return [Shard(*found) for found in bucket(pattern).listed()]
    folder, _, name = pattern.rpartition("/")
    return _stat(sorted(str(path) for path in epath.Path(folder or ".").glob(name)))


def _stat(paths: list[str]) -> list[Shard]:
    def one(path: str) -> Shard:
        try:
            if in_bucket(path):
                return Shard(*bucket(path).described())
            found = os.stat(path)
            return Shard(path, found.st_size, str(found.st_mtime_ns))
        except FileNotFoundError:
            raise InputError(f"there is no file {path}") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {why(error)}") from error

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, paths))


class _Reader:
    """Reads small pieces of a shard, each with what follows: on buckets every read takes long."""

    def __init__(self, shard: Shard):
        self.size, self._path = shard.size, shard.path
        self._start, self._content = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        if not self._start <= offset <= offset + size <= self._start + len(self._content):
            many = min(max(size, READ_AHEAD), self.size - offset)
            self._start, self._content = offset, read_range(self._path, offset, many)
        return self._content[offset - self._start : offset - self._start + size]


Place = tuple[int, int]
"""Offset and size of a member, in bytes."""


def _members(reader: _Reader) -> Iterator[tuple[str, Place]]:
    """The names and places of the files in a tar file; raises _Damage."""
    offset, name, size = 0, "", -1
    while True:
        if offset + BLOCK > reader.size:
            raise _Damage(f"ends at byte {reader.size} without a mark of the end")
        header = reader.read(offset, BLOCK)
        if not any(header):
            return
        if _octal(header[148:156], offset) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise _Damage(f"has no valid header at byte {offset}")
        kind, place = header[156:157], offset + BLOCK
        length = size if size >= 0 and kind not in b"xgLK" else _octal(header[124:136], offset)
        if place + length > reader.size:
            raise _Damage(f"ends at byte {reader.size}, within what begins at byte {offset}")
        if kind in b"xL" and kind:
            if length > MAX_SMALL:
                raise _Damage(f"has no valid header at byte {offset}")
            content = reader.read(place, length)
            if kind == b"L":
                name = _decoded(content.rstrip(b"\0"))
            else:
                records = dict(_pax(content, offset))
                name, size = records.get("path", name), int(records.get("size", size))
        elif kind not in b"gK":
            if kind in b"0\0" + b"7":
                yield name or _name(header), (place, length)
            name, size = "", -1
        offset = place + -(-length // BLOCK) * BLOCK


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if (
        header[257:262] == b"ustar" and header[257:265] != b"ustar  \0"
    ):  # GNU has other things there
        prefix = header[345:500].split(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _decoded(name)


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _octal(field: bytes, offset: int) -> int:
    """A number of a header: octal, or binary if it is too large for that."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise _Damage(f"has no valid header at byte {offset}") from None


def _pax(content: bytes, offset: int) -> Iterator[tuple[str, str]]:
    """Keys and values of an extended header: "LENGTH KEY=VALUE" and a new line each."""
    try:
        while content:
            length = int(content.split(b" ", 1)[0])
            key, value = content[:length].split(b" ", 1)[1].rstrip(b"\n").split(b"=", 1)
            if length < 1 or (key == b"size" and int(value) < 0):
                raise ValueError
            yield key.decode(), _decoded(value)
            content = content[length:]
    except (ValueError, IndexError):
        raise _Damage(f"has no valid header at byte {offset}") from None


def _clips(members: Iterable[tuple[str, Place]]) -> Iterator[tuple[str, dict[str, Place]]]:
    """Key of each clip, and its members by extension; raises _Damage after the last one."""
    damage: list[_Damage] = []

    def whole() -> Iterator[tuple[str, Place]]:
        try:
            yield from members
        except _Damage as error:
            damage.append(error)

    def key(member: tuple[str, Place]) -> str:
        folder, slash, name = member[0].rpartition("/")
        return folder + slash + name.partition(".")[0]

    for name, group in itertools.groupby(whole(), key):
        found: dict[str, Place] = {}
        for member, place in group:
            found.setdefault(member.rpartition("/")[2].partition(".")[2].lower(), place)
        yield name, found
    if damage:
        raise damage[0]


def _is_video(extension: str) -> bool:
    return extension.rpartition(".")[2] in VIDEOS


def _described(reader: _Reader, members: dict[str, Place]) -> tuple[list[str], dict[str, float]]:
    """The captions of a clip, and the numbers of its metadata."""
    captions: list[Any] = []
    if "txt" in members:
        captions.append(_small(reader, members["txt"]).decode("utf-8", "replace"))
    metadata: Any = None
    if "json" in members:
        try:
            metadata = json.loads(_small(reader, members["json"]))
        except (ValueError, RecursionError):
            metadata = None
    if not isinstance(metadata, dict):
        metadata = {}
    for name in ("caption", "captions"):
        given = metadata.pop(name, None)
        captions += given if isinstance(given, list) else [given]
    kept = [text.strip() for text in captions if isinstance(text, str) and text.strip()]
    return list(dict.fromkeys(kept)), dict(numbers(metadata))


def _small(reader: _Reader, place: Place) -> bytes:
    return reader.read(*place) if place[1] <= MAX_SMALL else b""
