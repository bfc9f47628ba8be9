"""Paths that users give."""

import os
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from show1_jax.errors import InputError

# One slash, because `Path` turns "gs://bucket" into "gs:/bucket". One letter is a Windows drive.
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")


Checkpoint = str | Path | Sequence[str | Path]
"""A converted checkpoint, or several, of which later ones override the stages of earlier ones."""


def local_path(path: str | PathLike[str]) -> Path:
    """Checks that a path is on a local disk, and expands a leading `~`.

    Raises:
      InputError: if the path has a scheme, such as `gs://`, or the home folder is unknown.
    """
    text = os.fspath(path)
    if found := _SCHEME.match(text):
        raise InputError(
            f"{text} is not on this machine, and paths with {found[1]}:// are not supported; copy "
            "it to or from a local disk"
        )
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise InputError(f"{text}: there is no such home folder; give the path without ~")
    return Path(expanded)


def local_paths(checkpoint: Checkpoint) -> list[Path]:
    """The folders of one or several checkpoints; see `local_path`."""
    several = [checkpoint] if isinstance(checkpoint, str | Path) else checkpoint
    return [local_path(each) for each in several]
