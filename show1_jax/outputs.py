"""The folder that sampling writes: for each item its clips, exact results and metadata.

OUT/items.jsonl                 prompt and seed of each item, in order
OUT/000/keyframes.mp4, .gif     to look at
OUT/000/keyframes.npy           exact, to go on from
OUT/000/first_frame.png, .npy
OUT/000/metadata.json           prompt, seed, and the settings that made each of them
OUT/1000-1999/1234/             item 1234: no folder has more than some thousand entries
OUT/manifest.jsonl              a line for each result that was made, or removed, or failed and why

Several processes write manifests of their own beside it, `manifest-NAME.jsonl`, until `merge`.
"""

import io
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils.epath import Path
from flax.traverse_util import flatten_dict

from show1_jax import manifest
from show1_jax import stages as known_stages
from show1_jax.checkpoints.fields import parse_json
from show1_jax.errors import ARRAY_DAMAGE, InputError, why
from show1_jax.files import (
    Log,
    copy_file,
    files_in,
    open_bytes,
    replace,
    size_of,
    write_whole,
)
from show1_jax.manifest import Result
from show1_jax.media import read_mp4, to_uint8, write_gif, write_mp4, write_png
from show1_jax.paths import in_bucket
from show1_jax.stages.results import checked

# Settings that are noted but change nothing that would need making again.
CIRCUMSTANCES = ("checkpoint", "versions", "platform")
ITEMS = "items.jsonl"
FOLDER_ITEMS = 1000  # in one folder


class Outputs:
    """Results of a run, on disk or in a bucket; see `stages.results.Results`.

    Attributes:
      folder: of the run.
      prompts: of all items in it.
      seeds: likewise.
      failures: item, stage and reason of what could not be made.
      made: items and stages that were made.
      removed: items and stages whose results were removed, some of them to be made again.
    """

    def __init__(self, folder: os.PathLike[str], part: str = ""):
        """A folder that may exist already; nothing is written before `begin`.

        Args:
          folder: of the run.
          part: names the manifest of this process among those that share the folder; "" for the
            only one.
        """
        self.folder = Path(folder)
        self.manifest = manifest.path(self.folder, part)
        self.prompts: Sequence[str] = ()
        self.seeds: Sequence[int] = ()
        self.failures: list[tuple[int, str, str]] = []
        self.made: set[Result] = set()
        self.removed: set[Result] = set()
        self._log: Log | None = None

    def items(self) -> list[tuple[str, int]]:
        """Prompt and seed of the items that are here, in order.

        Raises:
          InputError: if they cannot be read.
        """
        path = self.folder / ITEMS
        if not path.is_file():
            return []
        try:
            rows = [parse_json(line) for line in path.read_text().splitlines()]
            items = [(row["prompt"], row["seed"]) for row in rows]
            if all(isinstance(text, str) and type(seed) is int for text, seed in items):
                return items
            raise ValueError("it does not list prompts and seeds")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} cannot be read: {why(error)}") from None

    def begin(
        self, prompts: Sequence[str], seeds: Sequence[int], own: Iterable[int] | None = None
    ) -> None:
        """Says which items the results will be of, and makes the folder.

        Args:
          prompts: of all items that the folder will hold.
          seeds: likewise.
          own: the items that this process makes; None for all.

        Raises:
          InputError: if it holds other items, or cannot be written.
        """
        self.prompts, self.seeds, self.failures = prompts, seeds, []
        self.made, self.removed = set(), set()
        items = list(zip(prompts, seeds, strict=True))
        if (known := self.items()) != items[: len(known)]:
            raise InputError(f"{self.folder} holds other prompts or seeds; give another --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if known != items:
                rows = (json.dumps({"prompt": text, "seed": seed}) for text, seed in items)
                write_whole(self.folder / ITEMS, "".join(f"{row}\n" for row in rows).encode())
            noted = manifest.noted(self.folder, self.manifest)
            for item in range(len(items)) if own is None else own:
                self._begin_item(item, noted)
        except FileExistsError:
            raise InputError(f"{self.folder} is a file: give a folder to write to") from None
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written: {error.strerror}") from None

    def _begin_item(self, item: int, noted: Collection[Result]) -> None:
        """Makes an item's folder, or notes what the last run was cut off before it noted."""
        if not self.knows(item):
            self._item(item).mkdir(parents=True, exist_ok=True)
            self._describe(item, {})
            return
        known = self._metadata(item)
        if (known["prompt"], known["seed"]) != (self.prompts[item], self.seeds[item]):
            raise InputError(f"{self._item(item)} holds another prompt or seed; give another --out")
        for stage in known["stages"]:
            if (item, stage) not in noted and self._there(item, stage):
                self._note(item, stage)

    def outdated(self, item: int, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """The stages whose results would go if stages were run with these settings, and why.

        Args:
          item: which item.
          settings: of each stage to run.

        Returns:
          For each stage whose result is here and would be replaced, or removed since it came
          of one that would be: what is different.
        """
        found = self._metadata(item)["stages"]
        names = known_stages.names()
        for place, stage in enumerate(names):
            if stage not in settings or _same(found.get(stage), settings[stage]):
                continue
            why = f"{stage}: {_difference(found.get(stage, {}), settings[stage])}"
            there = (name for name in names[place:] if name in found and self._there(item, name))
            return dict.fromkeys(there, why)
        return {}

    def complete(self, items: Iterable[int]) -> None:
        """Writes missing clips and pictures from the exact results.

        Raises:
          InputError: if one cannot be written.
        """
        for item in items:
            for stage, settings in self._metadata(item)["stages"].items():
                if stage not in known_stages.names() or not self._there(item, stage):
                    continue
                lacking = [path for path in self.shown(item, stage) if not path.is_file()]
                if not lacking:
                    continue
                if frames := self._frames(item, stage):
                    for path in lacking:
                        _write(path, frames[0], settings.get("fps", 1))

    def _frames(self, item: int, stage: str) -> list[np.ndarray]:
        """A result as uint8 to look at; none, with a warning, of one that is damaged."""
        path = self._item(item) / f"{stage}.mp4"
        try:
            if _is_last(stage):
                return [read_mp4(path)]
            result = self.load(item, stage)
            pixels = checked(result, stage, result.shape)
            return [result if result.dtype == np.uint8 else to_uint8(pixels)]
        except InputError as error:
            logging.warning("%s is not made again: %s", path.with_suffix(""), error)
            return []

    def knows(self, item: int) -> bool:
        """Whether an item is here, with whatever results."""
        return self._metadata_path(item).is_file()

    def made_stages(self, item: int) -> list[str]:
        """The stages whose results are here, in order; none of an item that is not."""
        if not self.knows(item):
            return []
        found = self._metadata(item)["stages"]
        return [name for name in known_stages.names() if name in found and self._there(item, name)]

    def take(self, other: "Outputs", stages: Collection[str]) -> None:
        """Takes results of another folder's first item for its own first item.

        Args:
          other: holds the same prompt and seed.
          stages: of which stages.

        Raises:
          InputError: if one is not there, or a file cannot be written.
        """
        settings = other._metadata(0)["stages"]
        try:
            for stage in stages:
                if stage not in settings or not other.has(0, stage):
                    raise InputError(f"{other.folder} has no result of {stage}")
                for path in (other._exact(0, stage), *other.shown(0, stage)):
                    if path.is_file():
                        _link(path, self._item(0) / path.name)
                self._describe(0, {stage: settings[stage]})
                self._note(0, stage)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written: {error.strerror}") from None

    def has(self, item: int, stage: str) -> bool:
        """Whether the exact result of a stage is here."""
        return self._exact(item, stage).is_file()

    def done(self, item: int, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether a stage's result is here, and these settings made it."""
        found = self._metadata(item)["stages"].get(stage)
        return _same(found, settings) and self._there(item, stage)

    def fail(self, item: int, stage: str, error: InputError) -> None:
        """Notes why an item could not be made, in `failures` and in the manifest."""
        self.failures.append((item, stage, str(error)))
        try:
            self._note(item, stage, error=str(error))
        except OSError as problem:
            raise InputError(f"{self.manifest} cannot be written: {problem.strerror}") from None

    def load(self, item: int, stage: str) -> np.ndarray:
        """The exact result of a stage.

        Raises:
          InputError: if it is damaged.
        """
        path = self._exact(item, stage)
        try:
            return _load(path)
        except ARRAY_DAMAGE as error:
            raise InputError(f"{path} cannot be read: {error or 'it is too large'}") from None

    def save(self, item: int, stage: str, result: np.ndarray, settings: Mapping[str, Any]) -> None:
        """Writes a result and removes what later stages made of one with other settings.

        Args:
          item: which item.
          stage: which stage.
          result: a clip `(frames, height, width, 3)` or an image, in [-1, 1].
          settings: what made it; `fps` is a clip's frames per second.

        Raises:
          InputError: if a file cannot be written.
        """
        path, names = self._item(item) / stage, known_stages.names()
        old: Sequence[str] = [stage]
        try:
            found = self._metadata(item)["stages"]
            if not _same(found.get(stage), settings):
                old = names[names.index(stage) :]
                self._describe(item, {}, without=old)
                for name in old:
                    if name in found:
                        self._note(item, name, removed=True)
            self.removed |= {(item, name) for name in old if name in found}
            for name in old:
                for ending in (".npy", ".mp4", ".gif", ".png"):
                    (self._item(item) / (name + ending)).unlink(missing_ok=True)
            for shown in self.shown(item, stage):
                _write(shown, to_uint8(result), settings.get("fps", 1))
            if not _is_last(stage):
                replace(self._exact(item, stage), lambda file: np.save(file, result))
            self._describe(item, {stage: settings})
            self._note(item, stage)
            self.made.add((item, stage))
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None

    def shown(self, item: int, stage: str) -> list[Path]:
        """The files to look at that a stage makes: .mp4 and .gif, or .png."""
        endings = (".png",) if known_stages.by_name(stage).image else (".mp4", ".gif")
        return [self._item(item) / (stage + ending) for ending in endings]

    def merge(self) -> tuple[list[str], dict[Result, str]]:
        """Makes one manifest of those that several processes wrote.

        Returns:
          The stages that were run, in order, and by item and stage what is missing, with the
          reason that a manifest gives or "".

        Raises:
          InputError: if there are no items, or a file cannot be read or written.
        """
        items = self.items()
        if not items:
            raise InputError(f"{self.folder} holds no items of sample.py")
        self.prompts, self.seeds = [text for text, _ in items], [seed for _, seed in items]
        try:
            last = manifest.merge(self.folder)
            files = {str(path) for path in files_in(self.folder)}
        except OSError as error:
            raise InputError(f"{self.folder} cannot be merged: {error.strerror}") from None
        names = [name for name in known_stages.names() if name in {stage for _, stage in last}]
        missing = {}
        for item in range(len(items)):
            for name in names:
                path = self.shown(item, name)[0] if _is_last(name) else self._exact(item, name)
                if str(path) not in files:
                    missing[item, name] = last.get((item, name), {}).get("error", "")
        return names, missing

    def _there(self, item: int, stage: str) -> bool:
        """Whether a stage that the metadata names has its file; the last has no exact one."""
        if _is_last(stage):
            return (self._item(item) / f"{stage}.mp4").is_file()
        try:
            return _is_whole(self._exact(item, stage))
        except ARRAY_DAMAGE:
            return False

    def _note(self, item: int, stage: str, **more: Any) -> None:
        """Adds a line to the manifest; raises OSError."""
        if self._log is None:
            self._log = Log(self.manifest)
        self._log.add(manifest.line(item, stage, self.prompts[item], self.seeds[item], **more))

    def _describe(
        self, item: int, stages: Mapping[str, Any], without: Collection[str] = ()
    ) -> None:
        """Adds stages to an item's metadata, and takes others out."""
        path = self._metadata_path(item)
        known = self._metadata(item)["stages"] if path.is_file() else {}
        kept = {name: value for name, value in known.items() if name not in without}
        metadata = {
            "prompt": self.prompts[item],
            "seed": self.seeds[item],
            "stages": {**kept, **stages},
        }
        write_whole(path, (json.dumps(metadata, indent=2) + "\n").encode())

    def _metadata(self, item: int) -> dict[str, Any]:
        path = self._metadata_path(item)
        try:
            metadata = parse_json(path.read_text())
            kinds = {"prompt": str, "seed": int, "stages": dict}
            if all(isinstance(metadata[key], kind) for key, kind in kinds.items()) and all(
                isinstance(settings, dict) for settings in metadata["stages"].values()
            ):
                return metadata
            raise ValueError("it does not describe an item")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} cannot be read: {why(error)}") from None

    def _item(self, item: int) -> Path:
        if item < FOLDER_ITEMS:
            return self.folder / f"{item:03d}"
        first = item - item % FOLDER_ITEMS
        return self.folder / f"{first}-{first + FOLDER_ITEMS - 1}" / str(item)

    def _exact(self, item: int, stage: str) -> Path:
        return self._item(item) / f"{stage}.npy"

    def _metadata_path(self, item: int) -> Path:
        return self._item(item) / "metadata.json"


def _link(path: Path, other: Path) -> None:
    """Makes a file appear in another place, too. None is changed after it was written."""
    try:
        os.link(path, other)
    except OSError:  # some file systems have no links
        copy_file(path, other)


def _is_last(stage: str) -> bool:
    """Whether a stage is the last of all, whose result nothing starts from."""
    return stage == known_stages.names()[-1]


def _load(path: Path) -> np.ndarray:
    array = np.load(io.BytesIO(path.read_bytes()))
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds several arrays")
    return array


def _is_whole(path: Path) -> bool:
    """Whether a file has all of its array; objects in buckets always have."""
    if in_bucket(path) or not path.is_file():
        return path.is_file()
    with open_bytes(path) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        header = read.get(version, np.lib.format.read_array_header_2_0)
        shape, _, dtype = header(file)
        return file.tell() + math.prod(shape) * dtype.itemsize == size_of(path)


def _write(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes a clip or an image, uint8, as its name ends."""
    if path.suffix == ".png":
        write_png(path, frames)
    else:
        {".mp4": write_mp4, ".gif": write_gif}[path.suffix](path, frames, fps)


def _same(found: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> bool:
    """Whether settings, as they were noted, make what these make."""
    return found is not None and not _different(found, settings)


def _different(found: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By dotted key, values of both that differ."""
    wanted = json.loads(json.dumps(settings))
    old, new = (
        flatten_dict({key: value for key, value in each.items() if key not in CIRCUMSTANCES})
        for each in (found, wanted)
    )
    return {
        ".".join(key): (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key] != new[key]
    }


def _difference(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The first difference, for people."""
    if not found:
        return "it is not there"
    (key, (old, new)), *more = _different(found, settings).items()
    others = f" and {len(more)} more" if more else ""
    return f"{key} was {old} and is {new} now{others}"
