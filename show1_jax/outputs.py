"""The folder that sampling writes: for each item its clips, exact results and metadata.

OUT/000/keyframes.mp4, .gif     to look at
OUT/000/keyframes.npy           exact, to go on from
OUT/000/first_frame.png, .npy
OUT/000/metadata.json           what reproduces them
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from show1_jax.errors import InputError
from show1_jax.media import to_uint8, write_gif, write_mp4, write_png

LAST_STAGE = "translation"


class Outputs:
    """Results of a run, on disk; see `stages.cascade.Results`."""

    def __init__(self, folder: Path, fps: Mapping[str, float]):
        """Opens or makes the folder.

        Args:
          folder: where to write.
          fps: frames per second of each stage's clips.

        Raises:
          InputError: if it cannot be written.
        """
        self.folder = folder
        self.fps = fps
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}") from None

    def items(self) -> list[dict[str, Any]]:
        """The metadata of the items that are here, in order.

        Raises:
          InputError: if one of them cannot be read.
        """
        found: list[dict[str, Any]] = []
        while (path := self._item(len(found)) / "metadata.json").is_file():
            try:
                found.append(json.loads(path.read_text()))
            except (OSError, ValueError) as error:
                raise InputError(f"{path} cannot be read: {error}") from None
        return found

    def describe(self, item: int, metadata: Mapping[str, Any]) -> None:
        """Writes an item's metadata."""
        self._item(item).mkdir(exist_ok=True)
        path = self._item(item) / "metadata.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(metadata, indent=2) + "\n")
        temporary.rename(path)

    def has(self, item: int, stage: str) -> bool:
        """Whether the exact result of a stage is here."""
        return self._exact(item, stage).is_file()

    def load(self, item: int, stage: str) -> np.ndarray:
        """The exact result of a stage.

        Raises:
          InputError: if it is damaged.
        """
        try:
            return np.load(self._exact(item, stage))
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self._exact(item, stage)} cannot be read: {error}") from None

    def save(self, item: int, stage: str, result: np.ndarray) -> None:
        """Writes a result: a clip `(frames, height, width, 3)` or an image, in [-1, 1].

        Raises:
          InputError: if a file cannot be written.
        """
        path = self._item(item) / stage
        frames = to_uint8(result)
        if result.ndim == 3:
            write_png(path.with_suffix(".png"), frames)
        else:
            write_mp4(path.with_suffix(".mp4"), frames, self.fps[stage])
            write_gif(path.with_suffix(".gif"), frames, self.fps[stage])
        if stage != LAST_STAGE:
            temporary = path.with_suffix(".tmp.npy")
            try:
                np.save(temporary, result)
                temporary.rename(self._exact(item, stage))
            except OSError as error:
                raise InputError(f"{path}.npy cannot be written: {error.strerror}") from None

    def _item(self, item: int) -> Path:
        return self.folder / f"{item:03d}"

    def _exact(self, item: int, stage: str) -> Path:
        return self._item(item) / f"{stage}.npy"
