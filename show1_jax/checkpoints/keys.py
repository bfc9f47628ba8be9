"""Key tables: how one network's PyTorch names and layouts correspond to ours.

A table is a list of rows `(torch pattern, our pattern, layout)`. Patterns are
dotted (PyTorch) or slashed (ours) paths in which `{}` stands for a number, the
same numbers in the same order on both sides. A table is read in both
directions, so a name is written down once. Two rows may lead to one parameter:
either another spelling of old checkpoints or a tied tensor stored twice; the
first of them is the spelling we write when no source file says otherwise. Of
the spellings a file may use one only; of the keys named as tied it may have all.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How an array is laid out on either side: two inverse axis permutations."""

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
    """Rows of one linear layer."""
    return [("weight", "kernel", DENSE), *([("bias", "bias", SAME)] if bias else [])]


def conv(layout: Layout = CONV) -> list[Row]:
    """Rows of one convolution."""
    return [("weight", "kernel", layout), ("bias", "bias", SAME)]


def under(torch: str, ours: str, rows: Iterable[Row]) -> list[Row]:
    """`rows` moved below a pair of prefixes."""
    return [(f"{torch}.{t}", f"{ours}/{o}", layout) for t, o, layout in rows]


def same_names(names: str, rows: Iterable[Row]) -> list[Row]:
    """`rows` once below each of the space-separated names both sides share."""
    rows = list(rows)
    return [row for name in names.split() for row in under(name, name, rows)]


class KeyTable:
    """One network's names, looked up from either side.

    `tied` are the PyTorch keys that may hold one parameter several times.

    `buffers` lists PyTorch entries that hold no parameter, with the function
    that makes them again from their shape (CLIP's position ids).
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
        """Our path and layout for a PyTorch key, or None if the table lacks it."""
        return _look_up(self._torch, key)

    def to_torch(self, path: str) -> tuple[str, Layout] | None:
        """The PyTorch key and layout for one of our paths, or None."""
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
