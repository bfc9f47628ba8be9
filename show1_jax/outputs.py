"""The folder that sampling writes: for each item its clips, exact results and metadata.

OUT/000/keyframes.mp4, .gif     to look at
OUT/000/keyframes.npy           exact, to go on from
OUT/000/first_frame.png, .npy
OUT/000/metadata.json           prompt, seed, and the settings that made each of them
OUT/manifest.jsonl              a line for each item and stage that is finished, or failed and why
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from show1_jax.errors import InputError
from show1_jax.media import to_uint8, write_gif, write_mp4, write_png
from show1_jax.stages.cascade import STAGES

LAST_STAGE = STAGES[-1]
# Settings that are noted but change nothing that would need making again.
CIRCUMSTANCES = ("checkpoint", "versions", "platform")


class Outputs:
    """Results of a run, on disk; see `stages.cascade.Results`."""

    def __init__(self, folder: Path, keeper: bool = True):
        """A folder that may exist already; nothing is written before `begin`.

        Args:
          folder: of the run.
          keeper: whether to write the manifest anew where it is out of date. Of
            processes that share a folder one does; the others only add lines.
        """
        self.folder, self._keeper = folder, keeper
        self.prompts: Sequence[str] = ()
        self.seeds: Sequence[int] = ()
        self.failures: list[tuple[int, str, str]] = []
        self.made = self.removed = 0

    def items(self) -> list[tuple[str, int]]:
        """Prompt and seed of the items that are here, in order.

        Raises:
          InputError: if one of them cannot be read.
        """
        found: list[tuple[str, int]] = []
        while self._metadata_path(len(found)).is_file():
            metadata = self._metadata(len(found))
            found.append((metadata["prompt"], metadata["seed"]))
        return found

    def begin(self, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        """Says which items the results will be of, and makes the folder.

        Raises:
          InputError: if it holds other items, or cannot be written.
        """
        self.prompts, self.seeds, self.failures = prompts, seeds, []
        self.made = self.removed = 0
        missing = []
        for item, own in enumerate(zip(prompts, seeds, strict=True)):
            if not self._metadata_path(item).is_file():
                missing.append(item)
                continue
            known = self._metadata(item)
            if (known["prompt"], known["seed"]) != own:
                raise InputError(
                    f"{self._item(item)} holds another prompt or seed; give another --out"
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for item in missing:
                self._item(item).mkdir(exist_ok=True)
                self._describe(item, {})
            # The last run may have been cut off before it wrote a line.
            self.write_manifest()
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written: {error.strerror}") from None

    def has(self, item: int, stage: str) -> bool:
        """Whether the exact result of a stage is here."""
        return self._exact(item, stage).is_file()

    def done(self, item: int, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether a stage's result is here, and these settings made it."""
        found = self._metadata(item)["stages"].get(stage)
        if found is None or not self._there(item, stage):
            return False
        wanted = json.loads(json.dumps(settings))
        keys = (found.keys() | wanted.keys()) - set(CIRCUMSTANCES)
        return all(key in found and found[key] == wanted.get(key) for key in keys)

    def fail(self, item: int, stage: str, error: InputError) -> None:
        """Notes why an item could not be made, in `failures` and in the manifest."""
        self.failures.append((item, stage, str(error)))
        self._note(self._line(item, stage, error=str(error)))

    def load(self, item: int, stage: str) -> np.ndarray:
        """The exact result of a stage.

        Raises:
          InputError: if it is damaged.
        """
        try:
            return np.load(self._exact(item, stage))
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self._exact(item, stage)} cannot be read: {error}") from None

    def save(self, item: int, stage: str, result: np.ndarray, settings: Mapping[str, Any]) -> None:
        """Writes a result and removes what later stages made of the one before it.

        Args:
          item: which item.
          stage: which stage.
          result: a clip `(frames, height, width, 3)` or an image, in [-1, 1].
          settings: what made it; `fps` is a clip's frames per second.

        Raises:
          InputError: if a file cannot be written.
        """
        path = self._item(item) / stage
        later = STAGES[STAGES.index(stage) :]
        try:
            outdated = self._metadata(item)["stages"].keys() & set(later)
            self._describe(item, {}, without=later)
            if outdated:
                self.write_manifest()
            for old in later:
                for ending in (".npy", ".mp4", ".gif", ".png"):
                    (self._item(item) / (old + ending)).unlink(missing_ok=True)
            frames = to_uint8(result)
            if result.ndim == 3:
                write_png(path.with_suffix(".png"), frames)
            else:
                write_mp4(path.with_suffix(".mp4"), frames, settings["fps"])
                write_gif(path.with_suffix(".gif"), frames, settings["fps"])
            if stage != LAST_STAGE:
                _replace(self._exact(item, stage), lambda file: np.save(file, result))
            self._describe(item, {stage: settings})
            self._note(self._line(item, stage))
            self.made += 1
            self.removed += len(outdated)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None

    def shown(self, item: int, stage: str) -> Path:
        """The video that a stage made, or the image."""
        video = self._item(item) / f"{stage}.mp4"
        return video if video.is_file() else video.with_suffix(".png")

    def write_manifest(self) -> None:
        """Writes the manifest anew, from what is there and what has failed.

        Lines that other processes add meanwhile may be lost: with several, the
        keeper does this again when all are done.
        """
        if not self._keeper:
            return
        lines = [
            self._line(item, stage)
            for item in range(len(self.prompts))
            for stage in self._metadata(item)["stages"]
            if self._there(item, stage)
        ]
        lines += [self._line(item, stage, error=why) for item, stage, why in self.failures]
        _replace(self._manifest, lambda file: file.write("".join(lines).encode()))

    def _there(self, item: int, stage: str) -> bool:
        """Whether a stage that the metadata names has its file; the last has no exact one."""
        if stage == LAST_STAGE:
            return (self._item(item) / f"{stage}.mp4").is_file()
        try:
            np.load(self._exact(item, stage), mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        return True

    def _line(self, item: int, stage: str, **more: str) -> str:
        known = {"item": item, "stage": stage, "prompt": self.prompts[item]}
        return json.dumps(known | {"seed": self.seeds[item]} | more) + "\n"

    def _note(self, line: str) -> None:
        """Adds a line to the manifest."""
        try:
            with self._manifest.open("a") as file:
                file.write(line)
        except OSError as error:
            raise InputError(f"{self._manifest} cannot be written: {error.strerror}") from None

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.jsonl"

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
        text = json.dumps(metadata, indent=2) + "\n"
        _replace(path, lambda file: file.write(text.encode()))

    def _metadata(self, item: int) -> dict[str, Any]:
        path = self._metadata_path(item)
        try:
            metadata = json.loads(path.read_text())
            if {"prompt", "seed", "stages"} <= metadata.keys():
                return metadata
            raise ValueError("it does not describe an item")
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None

    def _item(self, item: int) -> Path:
        return self.folder / f"{item:03d}"

    def _exact(self, item: int, stage: str) -> Path:
        return self._item(item) / f"{stage}.npy"

    def _metadata_path(self, item: int) -> Path:
        return self._item(item) / "metadata.json"


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file beside its place, then moves it there."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
