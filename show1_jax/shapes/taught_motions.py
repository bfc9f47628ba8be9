"""Motions that no caption of moving shapes describes, to be taught from one clip.

Settings of customization are to be chosen on the first eight alone.
"""

from collections.abc import Callable

import numpy as np

Course = Callable[[np.ndarray], np.ndarray]
"""Times 0 to 1, `(n,)`, to the centroid in heights from the frame's centre, `(n, 2)`: x and y."""

WIDTH, HEIGHT = 0.5, 0.25  # largest distances from the centre, in heights


def _turning(turns: float, first: float, last: float) -> Course:
    """A circle or spiral, from one radius to another; clockwise if `turns` is positive."""

    def course(time: np.ndarray) -> np.ndarray:
        angle, radius = 2 * np.pi * turns * time, first + (last - first) * time
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)

    return course


def _lissajous(across: int, down: int, phase: float = 0.0, start: float = 0.0) -> Course:
    """So many oscillations to the sides and up and down."""

    def course(time: np.ndarray) -> np.ndarray:
        angle = 2 * np.pi * (time + start)
        x, y = np.sin(across * angle + phase), np.sin(down * angle)
        return np.stack([0.8 * WIDTH * x, 0.85 * HEIGHT * y], axis=-1)

    return course


def _polygon(*corners: tuple[float, float]) -> Course:
    """From corner to corner at constant speed."""
    points = np.array(corners) * [WIDTH, HEIGHT]
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=-1)
    reached = np.concatenate([[0], np.cumsum(lengths)]) / lengths.sum()

    def course(time: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(time, reached, points[:, axis]) for axis in (0, 1)], axis=-1)

    return course


def _random(seed: int) -> Course:
    """A smooth curve: three oscillations on each axis, of random strength and phase."""
    rng = np.random.default_rng(seed)
    strength, phase = rng.normal(size=(2, 3)) / [1, 2, 3], rng.uniform(0, 2 * np.pi, (2, 3))
    many = np.linspace(0, 1, 201)

    def raw(time: np.ndarray) -> np.ndarray:
        angles = 2 * np.pi * 0.75 * time[:, None, None] * np.arange(1, 4) + phase
        return (strength * np.sin(angles)).sum(axis=-1)

    low, high = raw(many).min(axis=0), raw(many).max(axis=0)

    def course(time: np.ndarray) -> np.ndarray:
        return (2 * (raw(time) - low) / (high - low) - 1) * [0.9 * WIDTH, 0.9 * HEIGHT]

    return course


def _zigzag(time: np.ndarray) -> np.ndarray:
    wave = 4 * np.abs(1.5 * time % 1 - 0.5) - 1
    return np.stack([0.7 * (time - 0.5), 0.2 * wave], axis=-1)


def _bounce(time: np.ndarray) -> np.ndarray:
    fall = (2 * time) % 1 - 0.5  # two arcs
    return np.stack([0.6 * (time - 0.5), 0.2 - 0.4 * (1 - 4 * fall**2)], axis=-1)


def _swing(time: np.ndarray) -> np.ndarray:
    angle = 0.8 * np.cos(2 * np.pi * 1.25 * time)
    return np.stack([0.6 * np.sin(angle), 1.2 * np.cos(angle) - 1.05], axis=-1)


# What captions say of each, and its course. Words that captions of shapes have would mislead.
TAUGHT_MOTIONS: dict[str, tuple[str, Course]] = {
    "circle": ("in a loop", _turning(1, 0.2, 0.2)),
    "zigzag": ("in a zigzag", _zigzag),
    "bounce": ("in a bounce", _bounce),
    "spiral": ("in a spiral", _turning(1.25, 0.25, 0.05)),
    "eight": ("in an eight", _lissajous(1, 2)),
    "box": ("in a box", _polygon((-0.6, -1), (0.6, -1), (0.6, 1), (-0.6, 1), (-0.6, -1))),
    "wave": ("in a wave", lambda t: np.stack([0.8 * (0.5 - t), 0.2 * np.sin(9.4 * t)], axis=-1)),
    "scribble": ("in a scribble", _random(1)),
    "whirl": ("in a whirl", _turning(-1, 0.22, 0.22)),
    "tall_eight": ("in a tall eight", _lissajous(2, 1)),
    "wedge": ("in a wedge", _polygon((-0.8, 0.9), (0, -1), (0.8, 0.9), (-0.8, 0.9))),
    "unwinding": ("unwinding", _turning(-1.5, 0.04, 0.25)),
    "diamond": ("in a diamond", _polygon((0, -1), (-0.8, 0), (0, 1), (0.8, 0), (0, -1))),
    "knot": ("in a knot", _lissajous(3, 2, np.pi / 2)),
    "bow": ("in a bow", _lissajous(1, 2, np.pi / 2, 0.125)),
    "cup": ("in a cup", _polygon((-0.9, -1), (-0.9, 1), (0.9, 1), (0.9, -1))),
    "swing": ("in a swing", _swing),
    "doodle": ("in a doodle", _random(6)),
    "squiggle": ("in a squiggle", _random(5)),
    "ramble": ("in a ramble", _random(4)),
}
