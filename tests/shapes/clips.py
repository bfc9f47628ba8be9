"""Clips to measure: rendered, and then spoilt as a diffusion model might."""

import functools
from collections.abc import Iterator

import numpy as np

from show1_jax.shapes import scenes as shapes
from show1_jax.shapes.judge import measure

EVERY = shapes.combinations()


@functools.cache
def meanings() -> dict[str, shapes.Combination]:
    """What each caption says."""
    return {
        shapes.caption(own, template): own
        for combination in EVERY
        for motion in shapes.motions(combination.direction)
        for speed in shapes.SPEEDS
        for own in [combination._replace(motion=motion, speed=speed)]
        for template in range(len(shapes.TEMPLATES))
    }


def scenes(count: int, seed: int = 0) -> Iterator[shapes.Scene]:
    """Different combinations with random motions, places and speeds; a third name the speed."""
    rng = np.random.default_rng(seed)
    for index in rng.permutation(len(EVERY))[:count]:
        one = EVERY[index]
        motion, speed = rng.choice(shapes.motions(one.direction)), rng.choice(list(shapes.SPEEDS))
        speed = speed if rng.integers(2) else ""
        yield shapes.random_scene(one._replace(motion=str(motion), speed=str(speed)), rng)


def true_path(scene: shapes.Scene, frames: int) -> np.ndarray:
    return scene.centroid(np.linspace(0, shapes.DURATION, frames))


def blur(video: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian, in pixels; the frame goes on beyond its borders as it is there."""
    reach = int(3 * deviation) + 1
    weights = np.exp(-np.square(np.arange(-reach, reach + 1) / deviation) / 2)
    for axis in (1, 2):
        width = [(0, 0)] * 4
        width[axis] = (reach, reach)
        padded = np.pad(video.astype(float), width, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis)
        video = windows @ (weights / weights.sum())
    return video


def noisy(video: np.ndarray, rng: np.random.Generator, deviation: float = 8) -> np.ndarray:
    noise = deviation * rng.standard_normal(video.shape)
    return np.clip(video + noise, 0, 255).astype(np.uint8)


def wrong(scene: shapes.Scene, video: np.ndarray, stretch: float = 1.0) -> list[str]:
    """The attributes that are measured wrong."""
    return shapes.difference(measure(video, stretch).combination, scene.combination)


def accuracy(clips: list[tuple[shapes.Scene, np.ndarray]], stretch: float = 1.0) -> float:
    """The share of clips of which every attribute is measured right."""
    return float(np.mean([not wrong(s, v, stretch) for s, v in clips]))
