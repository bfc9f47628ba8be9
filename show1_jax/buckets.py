"""Folders in buckets, `gs://` and `s3://`, as `epath.Path`s.

Importing this module registers `BucketPath` for both schemes, in this process. Buckets have no
rename, no append and no locks; `files.py` has what stands in for them.

Requests that fail for a moment are repeated by `BucketPath`, which counts and logs them. The
libraries underneath do not repeat them, so that a bucket that is out of reach is an error within a
minute. What a program does then, such as removing what is half written, takes little longer.
"""

import asyncio
import errno
import functools
import io
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, Self, TypeVar

import aiohttp
import fsspec
import gcsfs.core
import google.auth.exceptions
import requests
import s3fs
from absl import logging
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from etils import epath
from etils.epath.gpath import PosixGPath
from etils.epath.stat_utils import StatResult

SCHEMES = ("gs://", "s3://")
ATTEMPTS = 6
MAX_SECONDS = 20.0  # after its first failure, a request is not repeated
CONNECT_SECONDS = 5
READ_SECONDS = 10  # without a byte
REST_SECONDS = 30.0  # for which requests to a bucket fail at once when it did not answer one
TRANSIENT_STATUS = (408, 429)  # and all from 500 on
SILENT = "the bucket does not answer"
ADVICE = {
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "run aws configure, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
TRY_LATER = "; run the same command again later"

T = TypeVar("T")

_retries = 0
# By bucket, since its last good answer: when a request was given up, and with what.
_given_up: dict[str, tuple[float, str]] = {}


def retries() -> int:
    """Returns how many requests this process has repeated."""
    return _retries


class _Gcs(gcsfs.core.GCSFileSystem):
    """Without gcsfs's own retries, and without its search for zonal buckets at each request."""

    async def _request(self, *args: Any, **kwargs: Any) -> Any:
        return await gcsfs.core.GCSFileSystem._request.__wrapped__(self, *args, **kwargs)

    _get_file_request = gcsfs.core.GCSFileSystem._get_file_request.__wrapped__
    _get_file_concurrent = gcsfs.core.GCSFileSystem._get_file_concurrent.__wrapped__


class _S3(s3fs.S3FileSystem):
    """Without s3fs's own retries."""

    retries = 1


@functools.cache
def _system(scheme: str) -> fsspec.AbstractFileSystem:
    """The file system of a scheme. It lists anew each time: other machines write, too."""
    if scheme == "gs":
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        return _Gcs(use_listings_cache=False, requests_timeout=timeout)
    limits = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"max_attempts": 0},
    }
    return _S3(use_listings_cache=False, config_kwargs=limits)


@epath.register_path_cls(SCHEMES)
class BucketPath(PosixGPath):
    """A path in a bucket. A folder exists while an object's name begins with it.

    All methods raise `OSError`s with `errno` and `strerror`, like those of paths on a disk.
    """

    @property
    def _fs(self) -> fsspec.AbstractFileSystem:
        return _system(str(self).partition(":")[0])

    def _info(self) -> dict[str, Any] | None:
        try:
            return _attempt(self, lambda: self._fs.info(str(self)))
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        """Whether it is an object or a folder."""
        return self._info() is not None

    def is_dir(self) -> bool:
        """Whether it is a folder that has objects."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_file(self) -> bool:
        """Whether it is an object."""
        info = self._info()
        return info is not None and info["type"] == "file"

    def stat(self) -> Any:
        """Its size in bytes, and when it was written."""
        info = _attempt(self, lambda: self._fs.info(str(self)))
        written = info.get("mtime") or info.get("LastModified")
        return StatResult(
            is_directory=info["type"] == "directory",
            length=info["size"] or 0,
            mtime=int(written.timestamp()) if written else 0,
        )

    def iterdir(self) -> Iterator[Self]:
        """The objects and folders in it; none if it is empty, which is as if it were not there."""
        try:
            found = _attempt(self, lambda: self._fs.ls(str(self), detail=False))
        except FileNotFoundError:
            found = []
        names = {name.rstrip("/").rpartition("/")[2] for name in found}
        return (self / name for name in sorted(names - {"", self.name}))

    def glob(self, pattern: str) -> Iterator[Self]:
        """Those whose names match a pattern without `**`."""
        scheme = str(self).partition(":")[0]
        found = _attempt(self, lambda: self._fs.glob(f"{self}/{pattern}"))
        return (type(self)(f"{scheme}://{name}") for name in sorted(found))

    def listed(self) -> list[tuple[str, int, str]]:
        """The objects whose names match this one, a pattern; see `described`."""
        scheme = str(self).partition(":")[0]
        found = _attempt(self, lambda: self._fs.glob(str(self), detail=True))
        return [
            (f"{scheme}://{name}", info["size"], _version(info))
            for name, info in sorted(found.items())
        ]

    def described(self) -> tuple[str, int, str]:
        """Its URL, its size in bytes, and what changes when it is written again."""
        info = _attempt(self, lambda: self._fs.info(str(self)))
        return str(self), info["size"], _version(info)

    def walk(self, **_: Any) -> Any:
        """Folders, names of folders and of objects, from the top."""
        scheme = str(self).partition(":")[0]
        found = _attempt(self, lambda: list(self._fs.walk(str(self))))
        return ((type(self)(f"{scheme}://{top}"), dirs, names) for top, dirs, names in found)

    def resolve(self, strict: bool = False) -> Self:
        """Itself: it is absolute, and there are no links."""
        return self

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Checks that a folder could be made, which takes no request but that."""
        info = self._info()
        if info is not None and (info["type"] == "file" or not exist_ok):
            raise FileExistsError(errno.EEXIST, "File exists", str(self))

    def rmtree(self, missing_ok: bool = False) -> None:
        """Removes all objects in it."""
        found = self._objects()
        if not found and not missing_ok:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))
        if found:
            _attempt(self, lambda: self._fs.rm(found))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes an object."""
        try:
            _attempt(self, lambda: self._fs.rm_file(str(self)))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: Any) -> Self:
        """Moves an object, or all objects of a folder one by one, within the same scheme."""
        other = type(self)(target)
        for name in self._objects() or [str(self)]:
            goal = f"{other}{name.removeprefix(str(self))}"
            _attempt(self, functools.partial(self._fs.cp_file, name, goal))
        self.rmtree() if self.is_dir() else self.unlink()
        return other

    def replace(self, target: Any) -> Self:
        """As `rename`."""
        return self.rename(target)

    def copy(self, dst: Any, overwrite: bool = False) -> Any:
        """Copies an object to a bucket or a disk."""
        target = epath.Path(dst)
        if not overwrite and target.exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(target))
        if isinstance(target, BucketPath):
            if target._fs is self._fs:
                _attempt(self, lambda: self._fs.cp_file(str(self), str(target)))
            else:
                target.write_bytes(self.read_bytes())
        else:
            _attempt(self, lambda: self._fs.get_file(str(self), os.fspath(target)))
        return target

    def _objects(self) -> list[str]:
        """The URLs of all objects in it."""
        scheme = str(self).partition(":")[0]
        found = _attempt(self, lambda: self._fs.find(str(self)))
        return [f"{scheme}://{name}" for name in found if f"{scheme}://{name}" != str(self)]

    def objects(self) -> Iterator[Self]:
        """All objects in it and in the folders in it."""
        return (type(self)(name) for name in self._objects())

    def read_bytes(self, start: int | None = None, end: int | None = None) -> bytes:
        """The content, or its bytes from `start` to before `end`."""
        return _attempt(self, lambda: self._fs.cat_file(str(self), start=start, end=end))

    def write_bytes(self, data: bytes) -> int:
        """Writes all of an object: others see what was there before, or all of this."""
        _attempt(self, lambda: self._fs.pipe_file(str(self), bytes(data)))
        return len(data)

    def upload(self, file: os.PathLike[str]) -> None:
        """Writes all of an object from a file on a disk, in parts if it is large."""
        _attempt(self, lambda: self._fs.put_file(os.fspath(file), str(self)))

    def create(self, data: bytes) -> None:
        """Writes an object that must not exist; raises FileExistsError where it does."""
        if self.is_file():
            raise FileExistsError(errno.EEXIST, "File exists", str(self))
        _attempt(self, lambda: self._fs.pipe_file(str(self), bytes(data), mode="create"))

    def open(self, mode: str = "r", **_: Any) -> IO[Any]:
        """Opens an object to read all or parts of it, or to write it whole when it is closed."""
        if "a" in mode or "+" in mode:
            raise OSError(errno.ENOTSUP, "objects cannot be changed, only written whole", str(self))
        if "w" in mode:
            return _Written(self) if "b" in mode else _WrittenText(self)
        if "b" not in mode:
            return io.StringIO(self.read_bytes().decode())
        return io.BufferedReader(_Ranges(self), buffer_size=2**24)


def _version(info: dict[str, Any]) -> str:
    keys = ("generation", "ETag", "etag", "mtime", "LastModified")
    return str(next((info[key] for key in keys if info.get(key)), 0))


class _Written(io.BytesIO):
    """Becomes an object when it is closed without an error, and else nothing."""

    def __init__(self, path: BucketPath):
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            self.discard()  # before, so that what fails is not tried again at the end of all
            self._path.write_bytes(content)

    def discard(self) -> None:
        """Closes it without writing it."""
        super().close()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self.discard()
        super().__exit__(kind, error, trace)

    def __del__(self) -> None:
        self.discard()


class _WrittenText(io.TextIOWrapper):
    """As `_Written`, for text."""

    def __init__(self, path: BucketPath):
        self._written = _Written(path)
        super().__init__(self._written, encoding="utf-8")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self._written.discard()
        super().__exit__(kind, error, trace)

    def __del__(self) -> None:
        self._written.discard()


class _Ranges(io.RawIOBase):
    """Reads ranges of an object."""

    def __init__(self, path: BucketPath):
        self._path, self._at, self._size = path, 0, path.stat().length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        found = self._path.read_bytes(self._at, end)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def readall(self) -> bytes:
        found = self._path.read_bytes(self._at, self._size) if self._at < self._size else b""
        self._at = self._size
        return found


def _attempt(path: BucketPath, request: Callable[[], T]) -> T:
    """Makes a request, and again where it failed for a moment; raises OSError."""
    global _retries
    bucket, failed = "/".join(str(path).split("/")[:3]), None
    for attempt in range(1, ATTEMPTS + 1):
        _check_silence(bucket, path)
        try:
            found = request()
        except (
            *(OSError, ValueError, RuntimeError, asyncio.TimeoutError),
            *(aiohttp.ClientError, requests.RequestException, gcsfs.core.HttpError),
            *(BotoCoreError, ClientError, google.auth.exceptions.GoogleAuthError),
        ) as error:
            plain, now = _plain(path, error), time.monotonic()
            failed = failed or now  # what came before may have been a long upload
            said = plain.strerror or ""
            if plain.errno != errno.EAGAIN:
                raise plain from error
            last = attempt >= (2 if bucket in _given_up else ATTEMPTS)
            if last or now - failed > MAX_SECONDS:
                _given_up[bucket] = now, said
                raise OSError(errno.EAGAIN, said + TRY_LATER, str(path)) from error
            _retries += 1
            pause = min(2 ** (attempt - 2), 8) * random.uniform(0.5, 1)
            logging.warning(
                "%s: %s; attempt %d of %d in %.1f s (%d repeated so far)",
                *(path, said, attempt + 1, ATTEMPTS, pause, _retries),
            )
            time.sleep(pause)
        else:
            _given_up.pop(bucket, None)
            return found
    raise AssertionError("unreachable")


def _check_silence(bucket: str, path: BucketPath) -> None:
    """Raises OSError if the bucket has just let another request wait in vain."""
    when, said = _given_up.get(bucket, (0.0, ""))
    if said.startswith(SILENT) and time.monotonic() < when + REST_SECONDS:
        raise OSError(errno.EAGAIN, said + TRY_LATER, str(path))


def _plain(path: BucketPath, error: BaseException) -> OSError:
    """The error of a library as one like those of disks; EAGAIN if it may pass."""
    text = (str(error).splitlines() or [""])[0].strip(" ,") or type(error).__name__
    if isinstance(error, TimeoutError):
        text = "a request took too long"
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(errno.ENOENT, "there is no such object or bucket", str(path))
    if isinstance(error, FileExistsError) or status in (409, 412):
        return FileExistsError(errno.EEXIST, "File exists", str(path))
    if isinstance(error, NoCredentialsError | google.auth.exceptions.GoogleAuthError):
        advice = ADVICE[str(path).partition(":")[0]]
        said = f"no credentials were found ({text}); {advice}"
        return PermissionError(errno.EACCES, said, str(path))
    if isinstance(error, PermissionError) or status in (401, 403) or text.startswith("Forbidden"):
        said = "the credentials have no right to do this; use others, or have it granted"
        return PermissionError(errno.EACCES, said, str(path))
    if status is not None and status < 500 and status not in TRANSIENT_STATUS:
        return OSError(errno.EIO, f"the bucket answered {status}: {text}", str(path))
    if isinstance(error, ValueError | RuntimeError) and not isinstance(error, OSError):
        return OSError(errno.EIO, text, str(path))
    said = f"the bucket answered {status}" if status else f"{SILENT} ({text})"
    return OSError(errno.EAGAIN, said, str(path))


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, if it says one."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, ClientError):
            return int(each.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
        code = getattr(each, "code", None) or getattr(each, "status", None)
        if isinstance(code, int):
            return code
        if isinstance(each, requests.exceptions.ProxyError):
            return 502
        each = each.__cause__
    return None
