"""The cascade's results as arrays on disk, for evaluation and for later stages.

DIR/items.json          prompts and seeds
DIR/000-keyframes.npy   fp32 pixels in [-1, 1]; those of the last stage are uint8
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils.epath import Path

from show1_jax.checkpoints.fields import parse_json
from show1_jax.errors import ARRAY_DAMAGE, InputError
from show1_jax.media import to_uint8, write_bytes
from show1_jax.stages import names


class Arrays:
    """The results of a run in a folder; see `stages.results.Results`."""

    def __init__(self, folder: Path):
        """Names the folder, which may exist already. Nothing is written before `begin`."""
        self.folder = folder

    def begin(self, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        """Records which items the results are of.

        Raises:
          InputError: if the folder has results of other items, or cannot be written.
        """
        path = self.folder / "items.json"
        items = [list(item) for item in zip(prompts, seeds, strict=True)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = parse_json(path.read_bytes()) if path.is_file() else items
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be used: {error}") from None
        if held != items:
            raise InputError(
                f"{self.folder} has results of other prompts or seeds; give another --out"
            )
        write_bytes(path, (json.dumps(items, indent=1) + "\n").encode())

    def has(self, item: int, stage: str) -> bool:
        """Returns whether there is a result."""
        return self._path(item, stage).is_file()

    def done(self, item: int, stage: str, settings: Mapping[str, Any]) -> bool:
        """Returns False, so that every stage that runs makes its results again."""
        del item, stage, settings
        return False

    def fail(self, item: int, stage: str, error: InputError) -> None:
        """Raises the error, because figures for only some items would be misleading."""
        raise InputError(f"{stage} of item {item}: {error}")

    def load(self, item: int, stage: str) -> np.ndarray:
        """Reads a result; raises InputError if it cannot be read, or is not a video."""
        path = self._path(item, stage)
        try:
            result = np.load(path)
        except ARRAY_DAMAGE as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        pixels = result.dtype == np.uint8 or np.issubdtype(result.dtype, np.floating)
        if not pixels or result.ndim not in (3, 4) or result.shape[-1] != 3 or not result.size:
            raise InputError(
                f"{path} has {result.dtype} of shape {result.shape}, which is not a video"
            )
        if not np.isfinite(result).all():
            raise InputError(f"{path} has values that are not finite")
        return result

    def save(self, item: int, stage: str, result: np.ndarray, settings: Mapping[str, Any]) -> None:
        """Writes a result, and removes results of later stages that started from an older one.

        Raises:
          InputError: if the result cannot be written.
        """
        del settings
        try:
            for later in names()[names().index(stage) :]:
                self._path(item, later).unlink(missing_ok=True)
            # Nothing starts from the last, which is by far the largest.
            np.save(self._path(item, stage), to_uint8(result) if stage == names()[-1] else result)
        except OSError as error:
            path = self._path(item, stage)
            raise InputError(f"{path} cannot be written: {error.strerror}") from None

    def _path(self, item: int, stage: str) -> Path:
        return self.folder / f"{item:03d}-{stage}.npy"
