"""The folder in which a conversion grows, so that the same one can go on from it."""

import fcntl
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

from show1_jax.checkpoints.networks import read_json
from show1_jax.checkpoints.store import discard
from show1_jax.errors import InputError

RECORD = "conversion.json"
# Of what conversions write: to be raised when that changes.
FORMAT = 1


class Finished(TypedDict):
    """What is noted of a network that is complete.

    Attributes:
      source: tells apart what it was made of, and how.
      digests: of its arrays as they were handed to the disk, by name.
      same_as: the network that it refers to instead, such as show-1-base/text_encoder.
      verified: whether it was read back and compared.
    """

    source: str
    digests: dict[str, str]
    same_as: str | None
    verified: bool


class Partial:
    """`DST.partial/`: a checkpoint's finished networks, and a record of what made them."""

    def __init__(self, dst: Path):
        """Makes the folder, or opens the one that an earlier conversion left.

        Args:
          dst: the folder that is to appear when all of it is written.

        Raises:
          InputError: if the folder cannot be made, is something else, or is
            being written by another process.
        """
        self._dst = dst
        self.folder = dst.absolute().with_name(dst.name + ".partial")
        self.checkpoint = self.folder / "checkpoint"
        self.networks: dict[str, Finished] = {}
        self._new_parents = [each for each in self.folder.parents if not each.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if any(self.folder.iterdir()) and not (self.folder / RECORD).is_file():
                raise InputError(f"{self.folder} is in the way, and no unfinished conversion")
        except BlockingIOError:
            raise InputError(f"{self.folder} is being written by another process") from None
        except OSError as error:
            self._remove_parents()
            raise InputError(f"{dst} cannot be written: {error.strerror}") from None

    def keep(self, sources: Mapping[str, str]) -> None:
        """Keeps the finished networks that were made of the same, and removes all else.

        Args:
          sources: `Finished.source` of each network of this conversion by name.
        """
        for name, finished in self._read().items():
            other = finished["same_as"]
            if finished["source"] == sources.get(name) and (not other or other in self.networks):
                self.networks[name] = finished
        self._write()
        self.checkpoint.mkdir(exist_ok=True)
        _prune(self.checkpoint, {self.checkpoint / name for name in self.networks})

    def finish(self, name: str, finished: Finished) -> None:
        """Notes that a network is complete."""
        self.networks[name] = finished
        self._write()

    def publish(self) -> None:
        """Puts the checkpoint where it is to be, and removes the rest."""
        os.rename(self.checkpoint, self._dst)
        self.remove()

    def leave(self) -> str:
        """Removes what is unfinished; says in a sentence what is left, or nothing."""
        if not self.networks:
            self.remove()
            return ""
        _prune(self.checkpoint, {self.checkpoint / name for name in self.networks})
        return (
            f"{len(self.networks)} network(s) are finished in {self.folder}: the same command "
            "goes on from there; or remove that folder"
        )

    def remove(self) -> None:
        """Removes the folder, and those that were made for it if nothing is in them."""
        discard(self.folder)
        self._remove_parents()

    def close(self) -> None:
        """Lets others write the folder."""
        os.close(self._lock)

    def _remove_parents(self) -> None:
        for folder in self._new_parents:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _read(self) -> dict[str, Finished]:
        """The record of an earlier conversion, with each network behind those it refers to."""
        try:
            networks = read_json(self.folder / RECORD)["networks"]
            return {
                name: Finished(
                    source=str(each["source"]),
                    digests=dict(each["digests"]),
                    same_as=each["same_as"],
                    verified=bool(each["verified"]),
                )
                for name, each in networks.items()
                if (self.checkpoint / name).is_dir()
            }
        # There is none yet, or it is damaged: then everything is made anew.
        except (InputError, KeyError, TypeError, ValueError, AttributeError):
            return {}

    def _write(self) -> None:
        temporary = self.folder / f"{RECORD}.tmp"
        with temporary.open("w") as file:
            json.dump({"networks": self.networks}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.folder / RECORD)


def _prune(folder: Path, kept: Collection[Path]) -> None:
    """Removes what is below a folder, except some folders and those that lead to them."""
    for path in folder.iterdir():
        if path in kept:
            continue
        if any(each.is_relative_to(path) for each in kept):
            _prune(path, kept)
        elif path.is_dir() and not path.is_symlink():
            discard(path)
        else:
            path.unlink()


def signature(network: Path, params: Path, how: Any) -> str:
    """Tells apart what networks are made of: files by name, size and time, and the options.

    Args:
      network: the folder of the source.
      params: the folder of its parameters, which another network may own.
      how: the options; plain JSON.
    """
    files = [*network.rglob("*"), *(params.rglob("*") if params.parent != network else ())]
    found = sorted(
        (str(path.absolute()), status.st_size, status.st_mtime_ns)
        for path in files
        if path.is_file()
        for status in [path.stat()]
    )
    return hashlib.sha256(json.dumps([FORMAT, how, found]).encode()).hexdigest()
