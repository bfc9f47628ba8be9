"""Files and folders on disks and in buckets: written whole, moved, copied, locked, added to.

On a disk, a file is written beside its place and renamed. An object is written by one request.
Buckets have no rename: a folder is moved object by object, what says that it is complete last.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import IO, Any

from etils.epath import Path

from show1_jax.paths import in_bucket

# What says that a folder of ours is complete; it is moved last, and removed first.
COMPLETE = ("config.json", "model_index.json")
COPIES = 16  # at once, to, from or in a bucket
PART_BYTES = 2**20  # of a log in a bucket, which is written anew with each line


def cache_folder() -> Path:
    """A folder on this machine for what can be made again."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Without a home folder, as of a user ID that the system does not list, "~" stays.
    return Path(tempfile.gettempdir() if cache.startswith("~") else cache) / "show1_jax"


def files_in(folder: Path) -> list[Path]:
    """All files in a folder and in the folders in it, sorted."""
    if in_bucket(folder):
        found: Any = folder
        return sorted(found.objects())
    return sorted(
        Path(top) / name for top, _, names in os.walk(folder, followlinks=True) for name in names
    )


def real_path(path: Path) -> Path:
    """Follows links, which `Path.resolve` does not; buckets have none."""
    return path if in_bucket(path) else Path(os.path.realpath(path))


def same_file(one: Path, other: Path) -> bool:
    """Returns whether two paths lead to one file, through links as well; raises OSError."""
    if in_bucket(one) or in_bucket(other):
        return one == other
    return os.path.samefile(one, other)


def check_writable(folder: Path) -> None:
    """Writes and removes a file in a folder; raises OSError if that fails."""
    probe = folder / f".{secrets.token_hex(4)}.probe"
    try:
        probe.write_bytes(b"")
    finally:
        probe.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Returns the bytes of a file; raises OSError."""
    return path.stat().length if in_bucket(path) else os.stat(path).st_size


def changed_at(path: Path) -> int:
    """Returns when a file was last written, as exactly as its store says; raises OSError."""
    return path.stat().mtime if in_bucket(path) else os.stat(path).st_mtime_ns


def open_bytes(path: str | PathLike[str]) -> Any:
    """Opens a file to read all or parts of it, without a buffer on a disk; raises OSError."""
    if in_bucket(path):
        found: Any = Path(path).open("rb")
        return found
    return open(path, "rb", buffering=0)


def read_range(path: str | PathLike[str], start: int, size: int) -> bytes:
    """Reads at most `size` bytes of a file, from `start` on; raises OSError."""
    with open_bytes(path) as file:
        file.seek(start)
        parts = []
        while size and (part := file.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def write_whole(path: str | PathLike[str], content: bytes, durable: bool = False) -> None:
    """Writes a file so that nobody sees half of it.

    Args:
      path: of the file.
      content: all of it.
      durable: whether to wait until it is on the disk.

    Raises:
      OSError: if it cannot be written.
    """

    def write(file: IO[bytes]) -> None:
        file.write(content)
        if durable and not in_bucket(path):
            file.flush()
            os.fsync(file.fileno())

    replace(path, write)


def replace(path: str | PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file so that nobody sees half of it.

    Args:
      path: of the file.
      write: writes its content to a stream.

    Raises:
      OSError: if it cannot be written.
    """
    place = Path(path)
    if in_bucket(place):
        with place.open("wb") as file:
            write(file)
        return
    partial = place.with_name(f".{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Moves a file or folder to a place that is free; raises OSError."""
    if in_bucket(source) and source.is_dir():
        copy_folder(source, target)
        remove(source)
    else:
        source.rename(target)


def exchange(new: Path, place: Path, old: Path) -> None:
    """Moves a folder to a place, and what is there to another.

    In a bucket, what is there is removed: for a moment, nothing complete is there.

    Args:
      new: the folder.
      place: where it goes.
      old: where what was there goes.

    Raises:
      OSError: if it cannot be moved; on a disk, all is as before then.
    """
    if in_bucket(place):
        remove(place)
        move(new, place)
        return
    there = place.exists()
    if there:
        place.rename(old)
    try:
        new.rename(place)
    except OSError:
        if there:
            old.rename(place)
        raise


def copy_folder(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """Copies a folder.

    Args:
      source: the folder.
      target: may exist already.
      without: names of files and folders that are left out.

    Raises:
      OSError: if a file cannot be read or written.
    """
    inner = [file.relative_to(source) for file in files_in(source)]
    inner = [file for file in inner if not set(file.parts) & set(without)]
    if not in_bucket(target):
        for folder in {(target / file).parent for file in inner} | {target}:
            folder.mkdir(parents=True, exist_ok=True)

    def copy(file: Path) -> None:
        copy_file(source / file, target / file)

    for last in (False, True):
        files = [file for file in inner if (file.name in COMPLETE) is last]
        # Each object takes a request or two.
        with ThreadPoolExecutor(COPIES if in_bucket(source) or in_bucket(target) else 1) as pool:
            list(pool.map(copy, files))


def copy_file(source: Path, target: Path) -> None:
    """Copies a file; raises OSError."""
    found: Any = source
    place: Any = target
    if in_bucket(source):
        found.copy(target, overwrite=True)
    elif in_bucket(target):
        place.upload(source)
    else:
        shutil.copyfile(source, target)


def remove(folder: Path) -> None:
    """Removes a folder as far as that is possible; raises no error."""
    with contextlib.suppress(OSError):
        if in_bucket(folder):
            for path in files_in(folder):
                if path.name in COMPLETE:
                    path.unlink(missing_ok=True)
            folder.rmtree(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def on_disk(folder: Path) -> Iterator[Path]:
    """A folder for libraries that read from disks alone: itself, or a copy for the context."""
    if not in_bucket(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="show1_jax_") as temporary:
        copy_folder(folder, Path(temporary))
        yield Path(temporary)


@contextlib.contextmanager
def written_on_disk(path: Path) -> Iterator[Path]:
    """A file on a disk to write in the context, in any order; it becomes `path` after it.

    Raises:
      OSError: if it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        if in_bucket(path):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="show1_jax_")))
        else:
            folder = path.parent
        partial = folder / f".{secrets.token_hex(4)}.partial{path.suffix}"
        stack.callback(partial.unlink, missing_ok=True)
        yield partial
        if in_bucket(path):
            place: Any = path
            place.upload(partial)
        else:
            partial.replace(path)


@contextlib.contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """A place on a disk to write a folder to in the context, which is `folder` after it.

    Raises:
      OSError: if it cannot be written.
    """
    if not in_bucket(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="show1_jax_") as temporary:
        yield Path(temporary) / folder.name
        copy_folder(Path(temporary) / folder.name, folder)


class Log:
    """A file that only grows.

    In a bucket it is a row of objects, `NAME`, `NAME.0001`, `NAME.0002` and so on. The last is
    written anew with each addition until it has `PART_BYTES`.
    """

    def __init__(self, path: Path, kept: bytes | None = None):
        """Opens a log to add to it.

        Args:
          path: of the file.
          kept: replaces what it holds; None to leave that as it is.

        Raises:
          OSError: if it cannot be read or written.
        """
        self._path = path
        self._part = 0
        self._content = b""
        if kept is not None:
            for old in log_parts(path)[1:]:
                old.unlink()
            write_whole(path, kept)
        if parts := log_parts(path):
            self._part = len(parts) - 1
            if in_bucket(path):
                self._content = parts[-1].read_bytes()
            elif (size := size_of(path)) and read_range(path, size - 1, 1) != b"\n":
                self.add(b"\n")  # the last line was cut off

    def add(self, content: bytes) -> None:
        """Adds to the end, at once; raises OSError."""
        if not in_bucket(self._path):
            with self._path.open("ab") as file:
                file.write(content)
            return
        if len(self._content) >= PART_BYTES:
            self._part, self._content = self._part + 1, b""
        self._content += content
        _part(self._path, self._part).write_bytes(self._content)


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number:04}") if number else path


def log_parts(path: Path) -> list[Path]:
    """The files of a log, in order."""
    if not in_bucket(path):
        return [path] if path.is_file() else []
    found: list[Path] = []
    names = {each.name for each in path.parent.iterdir()} if path.parent.is_dir() else set()
    while _part(path, len(found)).name in names:
        found.append(_part(path, len(found)))
    return found


def read_log(path: Path) -> bytes:
    """All that a log holds; nothing if there is none; raises OSError."""
    return b"".join(part.read_bytes() for part in log_parts(path))
