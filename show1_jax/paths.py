"""Paths as users give them."""

import os
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from show1_jax.errors import InputError

# `Path` makes "gs:/bucket" of "gs://bucket". One letter is a drive of Windows.
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")


Checkpoint = str | Path | Sequence[str | Path]
"""A converted checkpoint, or several, of which later ones override the stages of earlier ones."""


def local_path(path: str | PathLike[str]) -> Path:
    """A path on a disk of this machine, with the home folder in place of a leading `~`.

    Raises:
      InputError: if it has a scheme, such as `gs://`, or there is no home folder.
    """
    text = os.fspath(path)
    if found := _SCHEME.match(text):
        raise InputError(
            f"{text} is no folder or file of this machine: paths with {found[1]}:// are not "
            "supported; copy it to or from a disk"
        )
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise InputError(f"{text}: there is no such home folder; give the path without ~")
    return Path(expanded)


def local_paths(checkpoint: Checkpoint) -> list[Path]:
    """The folders of one or several checkpoints; see `local_path`."""
    several = [checkpoint] if isinstance(checkpoint, str | Path) else checkpoint
    return [local_path(each) for each in several]
