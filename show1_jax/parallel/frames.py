"""Splits each clip over several devices, by frames or by pixels.

A device that runs a layer within frames has some of the frames. A device that runs a layer
across frames, which treats each pixel independently, has some of the pixels of all frames.
Between the two kinds of layer, devices exchange their parts (all-to-all), like sequence and
heads in DeepSpeed Ulysses (Jacobs et al. 2023). No device ever holds a whole clip.

`over_frames` reads the mesh set by `jax.set_mesh`. While it calls a function it sets a
ContextVar, `_SPLIT`. `to_pixels`, which layers call, reads it.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from show1_jax.parallel.mesh import abstract_mesh

AXIS = "frames"


@dataclasses.dataclass(frozen=True)
class _Split:
    """How a clip is split by frames.

    Attributes:
      parts: number of parts.
      frames: number of frames of the whole clip.
      index: of this device's part, an int32 scalar.
    """

    parts: int
    frames: int
    index: jax.Array


_SPLIT: contextvars.ContextVar[_Split | None] = contextvars.ContextVar("split", default=None)


def over_frames(function: Callable[..., Any], sample: jax.Array, *others: Any) -> Any:
    """Calls a function of clips with their frames split over the mesh axis `frames`.

    Reads the mesh set by `jax.set_mesh`.

    Args:
      function: of a sample and other arrays. It must use `to_pixels` wherever a frame of its
        result depends on other frames.
      sample: `(batch, frames, ...)`; padded if the frames do not divide evenly.
      *others: trees of arrays or None, which every device gets whole.

    Returns:
      The function's result, a tree of `(batch, frames, ...)`.
    """
    mesh, frames = abstract_mesh(), sample.shape[1]
    parts = 1 if mesh is None else mesh.shape[AXIS]
    if parts == 1 or frames == 1:
        return function(sample, *others)

    # `axis_index` does not compile if the compiler handles other axes, hence an argument.
    def part(index: jax.Array, sample: jax.Array, *others: Any) -> Any:
        with _split(_Split(parts, frames, index[0])):
            return function(sample, *others)

    spec = PartitionSpec(None, AXIS)
    split = jax.shard_map(
        part,
        in_specs=(PartitionSpec(AXIS), spec, *(PartitionSpec(),) * len(others)),
        out_specs=spec,
        axis_names={AXIS},
        check_vma=False,
    )
    result = split(jnp.arange(parts), _pad(sample, 1, parts), *others)
    return jax.tree.map(lambda array: array[:, :frames], result)


@contextlib.contextmanager
def _split(split: _Split) -> Iterator[None]:
    token = _SPLIT.set(split)
    try:
        yield
    finally:
        _SPLIT.reset(token)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Which pixels of all frames a device has.

    Attributes:
      split: how the clips are split; None if they are not.
      shape: `(batch, frames, height, width, channels)` of the clips, where `frames` counts the
        frames that the device has.
    """

    split: _Split | None
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of pixels in a frame."""
        return math.prod(self.shape[2:4])

    def to_frames(self, x: jax.Array) -> jax.Array:
        """Splits by frames again: the inverse of `to_pixels`, for any number of channels."""
        if self.split is None:
            return x
        x = _pad(x[:, :, 0], 1, self.split.parts)
        x = jax.lax.all_to_all(x, AXIS, split_axis=1, concat_axis=2, tiled=True)
        return x[:, :, : self.count].reshape(*self.shape[:-1], x.shape[-1])

    def mean(self, x: jax.Array) -> jax.Array:
        """Averages over frames and pixels of all devices, `(batch, 1, 1, 1, channels)`."""
        if self.split is None:
            return x.mean((1, 2, 3), keepdims=True)
        width = x.shape[3]
        place = self.split.index * width + jnp.arange(width)
        inside = jnp.where((place < self.count)[:, None], x, 0)
        total = jax.lax.psum(inside.sum((1, 2, 3), keepdims=True), AXIS)
        return total / (self.split.frames * self.count)

    def part(self, draw: Callable[[tuple[int, ...]], jax.Array], channels: int) -> jax.Array:
        """Draws an array for whole clips, and returns the part for this device's pixels.

        Args:
          draw: makes an array of a shape, the same on every device.
          channels: of the array.
        """
        if self.split is None:
            return draw((*self.shape[:-1], channels))
        whole = draw((self.shape[0], self.split.frames, *self.shape[2:4], channels))
        whole = whole.reshape(*whole.shape[:2], self.count, channels)
        whole = _pad(whole, 2, self.split.parts)
        width = whole.shape[2] // self.split.parts
        start = self.split.index * width
        return jax.lax.dynamic_slice_in_dim(whole, start, width, axis=2)[:, :, None]


def to_pixels(x: jax.Array) -> tuple[jax.Array, Pixels]:
    """Splits clips by pixels, if `over_frames` has split them by frames.

    Reads the ContextVar that `over_frames` sets.

    Args:
      x: `(batch, frames, height, width, channels)`.

    Returns:
      `x` if clips are not split. Otherwise all frames of some pixels,
      `(batch, frames, 1, pixels, channels)`. And how to go back.
    """
    pixels = Pixels(_SPLIT.get(), x.shape)
    if pixels.split is None:
        return x, pixels
    x = _pad(x.reshape(*x.shape[:2], pixels.count, x.shape[-1]), 2, pixels.split.parts)
    x = jax.lax.all_to_all(x, AXIS, split_axis=2, concat_axis=1, tiled=True)
    return x[:, : pixels.split.frames, None], pixels


def _pad(x: jax.Array, axis: int, parts: int) -> jax.Array:
    """Appends zeros to an axis until it divides evenly."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % parts)
    return jnp.pad(x, widths)
