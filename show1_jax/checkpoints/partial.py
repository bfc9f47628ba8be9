"""The folder that a conversion writes to, from which the same conversion can continue."""

import contextlib
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from etils.epath import Path

from show1_jax.checkpoints.networks import read_json
from show1_jax.checkpoints.store import discard
from show1_jax.errors import InputError
from show1_jax.files import changed_at, files_in, move, size_of, write_whole
from show1_jax.lock import FILE, locked
from show1_jax.paths import in_bucket

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
        parents = [] if in_bucket(self.folder) else self.folder.parents
        self._new_parents = [each for each in parents if not each.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = {path.name for path in self.folder.iterdir()} - {FILE}
            if found and RECORD not in found:
                raise InputError(
                    f"{self.folder} exists, but is not an unfinished conversion; move it away"
                )
            self._lock = contextlib.ExitStack()
            self._lock.enter_context(locked(self.folder, "DST"))
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
        move(self.checkpoint, self._dst)
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
        self._lock.close()

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
        content = json.dumps({"networks": self.networks}).encode()
        write_whole(self.folder / RECORD, content, durable=True)


def _prune(folder: Path, kept: Collection[Path]) -> None:
    """Removes the contents of a folder, except the folders in `kept` and their parents."""
    for path in list(folder.iterdir()):
        if path in kept:
            continue
        if any(each.is_relative_to(path) for each in kept):
            _prune(path, kept)
        elif path.is_dir():
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
    files = [*files_in(network), *(files_in(params) if params.parent != network else ())]
    found = sorted((str(path.absolute()), size_of(path), changed_at(path)) for path in files)
    return hashlib.sha256(json.dumps([FORMAT, how, found]).encode()).hexdigest()
