"""Key tables: they map a network's PyTorch names and layouts to ours, and back.

A table is a list of rows `(torch pattern, our pattern, layout)`. Patterns are dotted (PyTorch) or
slashed (ours) paths, in which `{}` stands for a number. Both sides have the same numbers in the
same order. A table is read in both directions, so each name is written once.

Two rows may lead to one parameter: a second spelling in old checkpoints, or a tied tensor that is
stored twice. We write the spelling of the first row, unless a source file had another one. A file
may use only one of the spellings, but all keys in `tied`.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Two inverse axis permutations, from PyTorch's layout to JAX's and back."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda a: a, lambda a: a)
# (out, in) -> (in, out)
DENSE = Layout(lambda a: a.T, lambda a: a.T)
# (out, in, height, width) -> (height, width, in, out)
CONV = Layout(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
# (out, in, frames, 1, 1) -> (frames, in, out)
CONV_FRAMES = Layout(
    lambda a: a[:, :, :, 0, 0].transpose(2, 1, 0),
    lambda a: a.transpose(2, 1, 0)[:, :, :, None, None],
)

Row = tuple[str, str, Layout]

NORM: list[Row] = [("weight", "scale", SAME), ("bias", "bias", SAME)]


def dense(bias: bool = True) -> list[Row]:
    """Returns the rows of one linear layer."""
    return [("weight", "kernel", DENSE), *([("bias", "bias", SAME)] if bias else [])]


def conv(layout: Layout = CONV) -> list[Row]:
    """Returns the rows of one convolution."""
    return [("weight", "kernel", layout), ("bias", "bias", SAME)]


def under(torch: str, ours: str, rows: Iterable[Row]) -> list[Row]:
    """Returns `rows` with a prefix on each side."""
    return [(f"{torch}.{t}", f"{ours}/{o}", layout) for t, o, layout in rows]


def same_names(names: str, rows: Iterable[Row]) -> list[Row]:
    """Returns `rows` below each of the space-separated names, which are equal on both sides."""
    rows = list(rows)
    return [row for name in names.split() for row in under(name, name, rows)]


class KeyTable:
    """The names of one network, with look-up from either side.

    Attributes:
      rows: the table.
      tied: PyTorch keys that may hold one parameter several times.
      buffers: PyTorch keys that hold no parameter (CLIP's position ids), each with a function
        that makes the buffer from its shape.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        buffers: dict[str, Callable[[tuple[int, ...]], np.ndarray]] | None = None,
        tied: Collection[str] = (),
    ):
        self.rows = list(rows)
        self.tied = frozenset(tied)
        self.buffers = buffers or {}
        self._torch = [(_pattern(t), o, layout) for t, o, layout in self.rows]
        self._ours = [(_pattern(o), t, layout) for t, o, layout in self.rows]

    def to_ours(self, key: str) -> tuple[str, Layout] | None:
        """Returns our path and the layout for a PyTorch key, or None if the table lacks it."""
        return _look_up(self._torch, key)

    def to_torch(self, path: str) -> tuple[str, Layout] | None:
        """Returns the PyTorch key and the layout for one of our paths, or None."""
        return _look_up(self._ours, path)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(r"\{\}", r"(\d+)") + r"\Z")


def _look_up(
    rows: list[tuple[re.Pattern[str], str, Layout]], name: str
) -> tuple[str, Layout] | None:
    for pattern, other, layout in rows:
        if match := pattern.match(name):
            return other.format(*match.groups()), layout
    return None
