"""Arguments of the door from Python, checked: prompts, seeds, values of stages, frames."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from show1_jax import stages
from show1_jax.errors import InputError

MAX_SEED = 2**32 - 1

Number = int | float
PerStage = Number | Mapping[str, Number] | None
"""A value for all stages, or values of some by name; None for the config's."""


def items_of(prompts: str | Sequence[str], seeds: int | Sequence[int]) -> list[tuple[str, int]]:
    """Prompt and seed of each video: every seed of every prompt, prompt by prompt.

    Raises:
      InputError: if there is none, or one is no text or no seed.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    numbers = [seeds] if isinstance(seeds, int | np.integer) else list(seeds)
    if not texts or not numbers:
        raise InputError("give at least one prompt and one seed")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"a prompt is {text!r:.40}, which is no text")
    for seed in numbers:
        if not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
            raise InputError(f"a seed is {seed!r:.40}: give whole numbers from 0 to {MAX_SEED}")
    return [(text, int(seed)) for text in texts for seed in numbers]


def per_stage(name: str, values: PerStage) -> dict[str, Number]:
    """A value for each stage that it is given for.

    Args:
      name: "steps" or "guidance".
      values: of all stages, or of some by name; None for none.

    Raises:
      InputError: if a stage is unknown or a value no number.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        values = dict.fromkeys(stages.names(), values)
    read = whole if name == "steps" else _real
    for stage in values:
        stages.by_name(stage)
    return {stage: read(name, stage, value) for stage, value in values.items()}


def whole(name: str, stage: str, value: Any) -> int:
    """A whole number that is given for a stage; raises InputError if it is none."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise InputError(f"{name} of {stage} is {value!r:.40}: give a whole number")
    return int(value)


def _real(name: str, stage: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise InputError(f"{name} of {stage} is {value!r:.40}: give a number")
    return float(value)


def frames_of(frames: Any, items: int, shape: tuple[int, ...], name: str) -> list[np.ndarray]:
    """The frames of each item.

    Args:
      frames: the same for all items, or an array of one for each.
      items: how many items there are.
      shape: of the frames of one item.
      name: of the stage whose result they stand for.

    Raises:
      InputError: if they are neither.
    """
    array = np.asarray(frames)
    if array.ndim == len(shape):
        return [array] * items
    if array.ndim != len(shape) + 1 or len(array) != items:
        raise InputError(
            f"the frames in place of {name} are an array {array.shape}: give {shape} for all "
            f"videos, or {(items, *shape)}, one for each"
        )
    return list(array)
