"""Paths that users give."""

import os
import re
from collections.abc import Sequence
from os import PathLike

from etils.epath import Path

from show1_jax.errors import InputError

# One slash, because `pathlib.Path` turns "gs://bucket" into "gs:/bucket". One letter is a Windows
# drive.
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+")
BUCKETS = ("gs", "s3")

AnyPath = str | PathLike[str]
"""A path on a disk, or the URL of a folder or object in a bucket."""

Checkpoint = AnyPath | Sequence[AnyPath]
"""A converted checkpoint, or several, of which later ones override the stages of earlier ones."""


def as_path(path: AnyPath) -> Path:
    """Makes a path of what a user gave: on a disk, with `~` expanded, or in a bucket.

    Raises:
      InputError: if its scheme is not `gs://` or `s3://`, what reads buckets is not installed, or
        the home folder is unknown.
    """
    text = os.fspath(path)
    if found := _SCHEME.match(text):
        if found[1] not in BUCKETS:
            raise InputError(
                f"{text} is not on this machine, and paths with {found[1]}:// are not supported; "
                "copy it to or from a local disk, or a bucket with gs:// or s3://"
            )
        return _in_bucket(found[1], text[found.end() :])
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise InputError(f"{text}: there is no such home folder; give the path without ~")
    return Path(expanded)


def _in_bucket(scheme: str, rest: str) -> Path:
    try:
        from show1_jax import buckets  # imports the clients of both clouds
    except ImportError as error:
        raise InputError(
            f"{scheme}://{rest} needs {error.name}; run pip install 'show1-jax[cloud]'"
        ) from None
    return buckets.BucketPath(f"{scheme}://{rest}")


def in_bucket(path: AnyPath) -> bool:
    """Returns whether a path is in a bucket."""
    return os.fspath(path).partition("://")[0] in BUCKETS


def has_generations(path: AnyPath) -> bool:
    """Returns whether a place can hold a database of arrays (OCDBT), written in many steps.

    All can but the emulators of GCS, which tell no generations of what is downloaded.
    """
    return not (os.fspath(path).startswith("gs:") and os.environ.get("STORAGE_EMULATOR_HOST"))


def as_paths(checkpoint: Checkpoint) -> list[Path]:
    """The folders of one or several checkpoints; see `as_path`."""
    several = [checkpoint] if isinstance(checkpoint, str | PathLike) else checkpoint
    return [as_path(each) for each in several]


def local_path(path: AnyPath) -> Path:
    """Makes a path on a disk of what a user gave.

    Raises:
      InputError: as `as_path`, or if the path is in a bucket.
    """
    made = as_path(path)
    if in_bucket(made):
        raise InputError(f"{made} is in a bucket, but this must be on a local disk")
    return made
