"""The folder that a conversion writes to, from which the same conversion can continue."""

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
# Version of what conversions write. Increase it when that changes.
FORMAT = 1


class Finished(TypedDict):
    """The record of a network that is complete.

    Attributes:
      source: `signature` of its source files and options.
      digests: of its arrays as they were written, by name.
      same_as: name of the network that it refers to, such as show-1-base/text_encoder, or None.
      verified: whether it was read back and compared.
    """

    source: str
    digests: dict[str, str]
    same_as: str | None
    verified: bool


class Partial:
    """`DST.partial/`: the finished networks of a checkpoint, and a record of their sources."""

    def __init__(self, dst: Path):
        """Makes the folder, or opens the one that an earlier conversion left, and locks it.

        Args:
          dst: the folder to make when everything is written.

        Raises:
          InputError: if the folder cannot be made, is not one of a conversion, or is in use by
            another process.
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
                raise InputError(
                    f"{self.folder} exists, but is not an unfinished conversion; move it away"
                )
        except BlockingIOError:
            raise InputError(
                f"{self.folder} is in use by another process; wait for it to end"
            ) from None
        except OSError as error:
            self._remove_parents()
            raise InputError(f"{dst} cannot be written: {error.strerror}") from None

    def keep(self, sources: Mapping[str, str]) -> None:
        """Keeps finished networks with the same sources, and removes everything else.

        Args:
          sources: `Finished.source` of each network of this conversion, by name.
        """
        for name, finished in self._read().items():
            other = finished["same_as"]
            if finished["source"] == sources.get(name) and (not other or other in self.networks):
                self.networks[name] = finished
        self._write()
        self.checkpoint.mkdir(exist_ok=True)
        _prune(self.checkpoint, {self.checkpoint / name for name in self.networks})

    def finish(self, name: str, finished: Finished) -> None:
        """Records that a network is complete."""
        self.networks[name] = finished
        self._write()

    def publish(self) -> None:
        """Renames the checkpoint to its final folder, and removes the rest."""
        os.rename(self.checkpoint, self._dst)
        self.remove()

    def leave(self) -> str:
        """Removes unfinished networks; returns a sentence about what is left, or ""."""
        if not self.networks:
            self.remove()
            return ""
        _prune(self.checkpoint, {self.checkpoint / name for name in self.networks})
        return (
            f"{len(self.networks)} network(s) are finished in {self.folder}; run the same command "
            "to continue from there, or remove that folder"
        )

    def remove(self) -> None:
        """Removes the folder, and parent folders that were made for it and are empty."""
        discard(self.folder)
        self._remove_parents()

    def close(self) -> None:
        """Unlocks the folder."""
        os.close(self._lock)

    def _remove_parents(self) -> None:
        for folder in self._new_parents:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _read(self) -> dict[str, Finished]:
        """Reads the record of an earlier conversion. Networks follow those that they refer to."""
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
        # There is no record, or it is damaged; then all networks are converted again.
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
    """Removes the contents of a folder, except the folders in `kept` and their parents."""
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
    """Computes a hash of a network's source files (name, size and time) and options.

    Args:
      network: the source folder.
      params: the folder of its parameters, which another network may own.
      how: options that JSON can hold.
    """
    files = [*network.rglob("*"), *(params.rglob("*") if params.parent != network else ())]
    found = sorted(
        (str(path.absolute()), status.st_size, status.st_mtime_ns)
        for path in files
        if path.is_file()
        for status in [path.stat()]
    )
    return hashlib.sha256(json.dumps([FORMAT, how, found]).encode()).hexdigest()
