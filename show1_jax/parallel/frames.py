"""One clip over several devices: layers that see each frame alone have some of the frames.

Layers over the frames see each pixel alone and so can have some of the pixels
instead. Between the two, devices exchange what the others need (all-to-all),
as between sequence and heads in Jacobs et al. 2023 (DeepSpeed Ulysses): no
device ever holds a whole clip.
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

AXIS = "frames"


@dataclasses.dataclass(frozen=True)
class _Split:
    """Into how many parts a clip of so many frames is split, and which of them is here."""

    parts: int
    frames: int
    index: jax.Array


_SPLIT: contextvars.ContextVar[_Split | None] = contextvars.ContextVar("split", default=None)


def over_frames(function: Callable[..., Any], sample: jax.Array, *others: Any) -> Any:
    """Calls a function of clips with their frames spread over the mesh's axis `frames`.

    Args:
      function: of a sample and other arrays; each frame of its result is to
        depend on others only by way of `to_pixels`.
      sample: `(batch, frames, ...)`; padded if the frames do not divide evenly.
      *others: what every device needs; trees of arrays or None.

    Returns:
      The function's result, a tree of `(batch, frames, ...)`.
    """
    mesh, frames = jax.sharding.get_abstract_mesh(), sample.shape[1]
    parts = 1 if mesh.empty else mesh.shape[AXIS]
    if parts == 1 or frames == 1:
        return function(sample, *others)

    # Not `axis_index`, which does not compile where other axes are left to the compiler.
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
    """Which pixels of all frames a device has; without a split, all of them.

    Attributes:
      split: how the clips are split; None for not at all.
      shape: of the clips, `(batch, frames, height, width, channels)`, the
        frames being those that the device has.
    """

    split: _Split | None
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Of pixels in a frame."""
        return math.prod(self.shape[2:4])

    def to_frames(self, x: jax.Array) -> jax.Array:
        """Undoes `to_pixels`, on any number of channels."""
        if self.split is None:
            return x
        x = _pad(x[:, :, 0], 1, self.split.parts)
        x = jax.lax.all_to_all(x, AXIS, split_axis=1, concat_axis=2, tiled=True)
        return x[:, :, : self.count].reshape(*self.shape[:-1], x.shape[-1])

    def mean(self, x: jax.Array) -> jax.Array:
        """Mean over frames and pixels of all devices, `(batch, 1, 1, 1, channels)`."""
        if self.split is None:
            return x.mean((1, 2, 3), keepdims=True)
        width = x.shape[3]
        place = self.split.index * width + jnp.arange(width)
        inside = jnp.where((place < self.count)[:, None], x, 0)
        total = jax.lax.psum(inside.sum((1, 2, 3), keepdims=True), AXIS)
        return total / (self.split.frames * self.count)

    def part(self, draw: Callable[[tuple[int, ...]], jax.Array], channels: int) -> jax.Array:
        """Of what is drawn for whole clips, what belongs to the pixels here."""
        if self.split is None:
            return draw((*self.shape[:-1], channels))
        whole = draw((self.shape[0], self.split.frames, *self.shape[2:4], channels))
        whole = whole.reshape(*whole.shape[:2], self.count, channels)
        whole = _pad(whole, 2, self.split.parts)
        width = whole.shape[2] // self.split.parts
        start = self.split.index * width
        return jax.lax.dynamic_slice_in_dim(whole, start, width, axis=2)[:, :, None]


def to_pixels(x: jax.Array) -> tuple[jax.Array, Pixels]:
    """Where clips are split by frames, splits them by pixels instead.

    Args:
      x: `(batch, frames, height, width, channels)`.

    Returns:
      The same, or with all frames `(batch, frames, 1, pixels, channels)`; and how to go back.
    """
    pixels = Pixels(_SPLIT.get(), x.shape)
    if pixels.split is None:
        return x, pixels
    x = _pad(x.reshape(*x.shape[:2], pixels.count, x.shape[-1]), 2, pixels.split.parts)
    x = jax.lax.all_to_all(x, AXIS, split_axis=2, concat_axis=1, tiled=True)
    return x[:, : pixels.split.frames, None], pixels


def _pad(x: jax.Array, axis: int, parts: int) -> jax.Array:
    """Adds zeros to the end of an axis until it divides evenly."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % parts)
    return jnp.pad(x, widths)
