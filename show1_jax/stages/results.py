"""Results of stages: where they are kept, and the check before another stage starts from one."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from show1_jax.errors import InputError
from show1_jax.media import from_uint8

# Solvers leave [-1, 1] by little; bytes as floats leave it by far.
MAX_PIXEL = 4.0


class Results(Protocol):
    """Where results are kept, by item and stage."""

    def has(self, item: int, stage: str) -> bool:
        """Whether there is a result."""

    def done(self, item: int, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether there is a result that these settings made, which needs no making again."""

    def load(self, item: int, stage: str) -> np.ndarray:
        """A result as it was saved: `(frames, height, width, 3)`, or one frame."""

    def save(self, item: int, stage: str, result: np.ndarray, settings: Mapping[str, Any]) -> None:
        """Keeps a result, and what made it."""

    def fail(self, item: int, stage: str, error: InputError) -> None:
        """Keeps why a stage of one item could not be made; the others go on."""


class Memory:
    """Results in memory; an item that fails raises its error."""

    def __init__(self) -> None:
        """Holds nothing."""
        self._kept: dict[tuple[int, str], np.ndarray] = {}

    def put(self, item: int, stage: str, result: np.ndarray) -> None:
        """Gives a result that no stage here makes."""
        self._kept[item, stage] = result

    def has(self, item: int, stage: str) -> bool:
        """Whether there is a result."""
        return (item, stage) in self._kept

    def done(self, item: int, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether there is a result."""
        del settings
        return self.has(item, stage)

    def load(self, item: int, stage: str) -> np.ndarray:
        """A result as it was saved."""
        return self._kept[item, stage]

    def save(self, item: int, stage: str, result: np.ndarray, settings: Mapping[str, Any]) -> None:
        """Keeps a result."""
        del settings
        self._kept[item, stage] = result

    def fail(self, item: int, stage: str, error: InputError) -> None:
        """Raises the error: whoever asked for several videos wants all of them."""
        raise InputError(f"{stage} of video {item}: {error}") from error


AGAIN = "make it again, or give the sizes that it was made with"


def checked(
    result: np.ndarray, stage: str, shape: tuple[int, ...], advice: str = AGAIN
) -> np.ndarray:
    """A result that another stage starts from, as fp32 pixels in [-1, 1].

    Args:
      result: uint8, or floats in [-1, 1].
      stage: which stage made it, for messages.
      shape: what it has to be: `(frames, height, width, 3)`, or `(height, width, 3)`.
      advice: what to do about another shape.

    Raises:
      InputError: if it has another shape or dtype, or values that are no pixels.
    """
    if result.shape != shape:
        raise InputError(
            f"the result of {stage} is {_described(result.shape)}, not {_described(shape)}: "
            f"{advice}"
        )
    if result.dtype == np.uint8:
        return from_uint8(result)
    if not np.issubdtype(result.dtype, np.floating):
        raise InputError(
            f"the result of {stage} is {result.dtype}: give uint8, or floats from -1 to 1"
        )
    pixels = result.astype(np.float32, copy=False)
    largest = np.abs(pixels).max()
    if not largest <= MAX_PIXEL:
        raise InputError(
            f"the result of {stage} has values up to {largest:g}: give uint8, or floats from -1 "
            "to 1"
        )
    return pixels


def _described(shape: tuple[int, ...]) -> str:
    if len(shape) not in (3, 4) or shape[-1] != 3:
        return f"an array {shape}"
    *frames, height, width, _ = shape
    return f"{width}x{height}" if not frames else f"{frames[0]} frames of {width}x{height}"
