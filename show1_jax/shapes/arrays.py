"""The cascade's results as arrays on disk: what evaluation reads, and later stages go on from.

DIR/items.json          prompts and seeds
DIR/000-keyframes.npy   fp32 pixels in [-1, 1]; those of the last stage are uint8
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from show1_jax.checkpoints.fields import parse_json
from show1_jax.errors import ARRAY_DAMAGE, InputError
from show1_jax.media import to_uint8, write_bytes
from show1_jax.stages import names


class Arrays:
    """Results of a run in a folder; see `stages.cascade.Results`."""

    def __init__(self, folder: Path):
        """A folder that may exist already; nothing is written before `begin`."""
        self.folder = folder

    def begin(self, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        """Says which items the results are of.

        Raises:
          InputError: if the folder holds results of others, or cannot be written.
        """
        path = self.folder / "items.json"
        items = [list(item) for item in zip(prompts, seeds, strict=True)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = parse_json(path.read_bytes()) if path.is_file() else items
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be used: {error}") from None
        if held != items:
            raise InputError(f"{self.folder} holds other prompts or seeds; give another --out")
        write_bytes(path, (json.dumps(items, indent=1) + "\n").encode())

    def has(self, item: int, stage: str) -> bool:
        """Whether there is a result."""
        return self._path(item, stage).is_file()

    def done(self, item: int, stage: str, settings: Mapping[str, Any]) -> bool:
        """Never: what is asked for here is made again."""
        del item, stage, settings
        return False

    def fail(self, item: int, stage: str, error: InputError) -> None:
        """Raises it: figures of some of the items would be other figures."""
        raise InputError(f"{stage} of item {item}: {error}")

    def load(self, item: int, stage: str) -> np.ndarray:
        """A result as it was saved. Raises InputError if it cannot be read, or is no video."""
        path = self._path(item, stage)
        try:
            result = np.load(path)
        except ARRAY_DAMAGE as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        pixels = result.dtype == np.uint8 or np.issubdtype(result.dtype, np.floating)
        if not pixels or result.ndim not in (3, 4) or result.shape[-1] != 3 or not result.size:
            raise InputError(f"{path} holds no video, but {result.dtype} of shape {result.shape}")
        if not np.isfinite(result).all():
            raise InputError(f"{path} holds values that are not finite")
        return result

    def save(self, item: int, stage: str, result: np.ndarray, settings: Mapping[str, Any]) -> None:
        """Keeps a result, and removes what later stages made of the one before it.

        Raises InputError if it cannot be written.
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
