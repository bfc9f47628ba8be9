"""Measures what a video of moving shapes shows, from its pixels.

    measure(video).combination     # size, color, shape, direction, background, motion, speed

Each step uses the results of the steps before it:

1. background: the median color of each frame.
2. color: the median of the pixels that differ most from the background.
3. coverage: the share of each pixel that the shape covers, from its place on the line between
   background and color. The sum around the shape is the area, which gives the size. The mean place
   is the centroid.
4. shape: the one whose drawing fits the coverage best.
5. direction and motion: those of the path that fits the centroids best. The length of that path,
   as a share of the longest that the field has room for, gives the speed.

A value is reported only if the measurement is near enough to it (see the constants). This limits
how often a video of something else is right by chance.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from show1_jax.shapes.recognition import recognise
from show1_jax.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    SIDES,
    SIZES,
    SPEEDS,
    Combination,
    area,
    max_length,
)
from show1_jax.shapes.templates import best_shape

UNKNOWN = "?"  # an attribute that cannot be seen; not in any caption

MAX_ROWS = 80  # larger frames are averaged down first, which saves time and reduces noise
MAX_REACH = 0.42  # heights; no shape reaches farther from its centroid
MIN_CONTRAST = 50.0  # RGB distance of a shape from its background; at least 87 in scenes
MAX_COLOR_DISTANCE = 100.0  # RGB distance from a color of the palette
MIN_FADED = 0.6  # share of a color's contrast that a blurred small shape may have
# Square root of the area of the smallest shape, in heights.
MIN_SHAPE_SIDE = SIZES["small"] * math.sqrt(min(area(shape) for shape in SIDES))
MIN_SIDE = 0.6 * MIN_SHAPE_SIDE  # heights; smaller specks are not shapes
MIN_TRAVEL = 0.06  # heights per clip; less counts as no motion
MIN_SEEN = 0.5  # share of the frames that must show the shape
MIDDLE = (SPEEDS["slowly"][1] + SPEEDS["quickly"][0]) / 2  # between their shares of a path
MAX_MISFIT = 0.5  # of the best shape in a frame; above it the frame shows none


class Measurement(NamedTuple):
    """What a clip shows.

    Attributes:
      combination: the attributes; `UNKNOWN` if they cannot be seen.
      path: centroid in each frame, `(frames, 2)`: x and y in frame heights from the centre, like
        in `Scene`; NaN in frames that show no shape.
    """

    combination: Combination
    path: np.ndarray


def measure(video: np.ndarray, stretch: float = 1.0) -> Measurement:
    """Measures a clip of moving shapes.

    Args:
      video: `(frames, height, width, 3)` uint8, sampled evenly from a whole clip.
      stretch: factor by which the content is wider than drawn: 1.125 for a 256x160 clip that was
        resized to 576x320, 1 for a clip that was drawn at that size.

    Returns:
      The best guess for each attribute, and the path.
    """
    seen = _see(video)
    found = {"background": _nearest(seen.background, BACKGROUNDS)}
    path = np.full((len(video), 2), np.nan)
    if seen.coverage is not None:
        form, path = _trace(seen.coverage, seen.size, stretch)
        if form:
            found |= form | {"color": _color(seen.background, seen.contrast)}
            found |= _motion(path, form)
    names = (found.get(name, UNKNOWN) for name in Combination._fields)
    return Measurement(Combination(*names), path)


class Tracked(NamedTuple):
    """The shape in each frame.

    Attributes:
      crops: coverage in squares around the shape, `(frames, window, window)`.
      areas: of the shape in pixels, `(frames,)`.
      offsets: of its centroid from the square's middle pixel, `(frames, 2)`: x and y in pixels.
      middles: that pixel, likewise.
    """

    crops: np.ndarray
    areas: np.ndarray
    offsets: np.ndarray
    middles: np.ndarray


def track(video: np.ndarray, stretch: float = 1.0) -> Tracked | None:
    """Finds the shape in each frame; None if there is none. Arguments as in `measure`.

    Frames of more than `MAX_ROWS` rows are averaged down first.
    """
    seen = _see(video)
    return None if seen.coverage is None else _follow(seen.coverage, seen.size[1], stretch)


class _Seen(NamedTuple):
    size: np.ndarray  # of the frames after averaging: width and height
    background: np.ndarray  # RGB
    contrast: np.ndarray  # of the shape's color to the background's
    coverage: np.ndarray | None  # `(frames, height, width)`; None without contrast


def _see(video: np.ndarray) -> _Seen:
    """Tells a shape from its background."""
    small, factor = _shrink(video)
    size = np.array(video.shape[2:0:-1]) / factor
    backgrounds = np.median(small, axis=(1, 2))
    deviation = small - backgrounds[:, None, None]
    contrast = _contrast(deviation, size[1])
    coverage = None
    if np.linalg.norm(contrast) >= MIN_CONTRAST:
        coverage = np.clip(deviation @ (contrast / (contrast @ contrast)), -0.5, 1.5)
    return _Seen(size, np.median(backgrounds, axis=0), contrast, coverage)


def _trace(
    coverage: np.ndarray, size: np.ndarray, stretch: float
) -> tuple[dict[str, str], np.ndarray]:
    """Measures size, shape and path in frames whose width and height are `size`.

    Returns an empty dictionary and a path of NaN if too few frames show a shape.
    """
    path = np.full((len(coverage), 2), np.nan)
    crops, areas, offsets, middles = _follow(coverage, size[1], stretch)
    sides = np.sqrt(areas / stretch)
    shown = np.flatnonzero(sides >= MIN_SIDE * size[1])
    if len(shown) < MIN_SEEN * len(path):
        return {}, path
    side = float(np.median(sides[shown]))
    shape, misfit = best_shape(crops[shown], offsets[shown], side, stretch)
    shown = shown[misfit <= MAX_MISFIT]
    if len(shown) < MIN_SEEN * len(path):
        return {}, path
    path[shown] = (middles + offsets + 0.5 - size / 2)[shown] / [stretch * size[1], size[1]]
    diameter = side / math.sqrt(area(shape)) / size[1]
    return {
        "size": min(SIZES, key=lambda name: abs(math.log(diameter / SIZES[name]))),
        "shape": shape,
    }, path


def _shrink(video: np.ndarray) -> tuple[np.ndarray, int]:
    """Averages blocks of pixels to at most `MAX_ROWS` rows; returns fp32 frames and the factor."""
    frames, height, width, _ = video.shape
    factor = math.ceil(height / MAX_ROWS)
    rows, columns = height // factor, width // factor
    blocks = video[:, : rows * factor, : columns * factor].reshape(
        frames, rows, factor, columns, factor, 3
    )
    # Summing rows first, in 16 bits, takes a quarter of the time of a mean over both axes.
    sums = blocks.sum(axis=2, dtype=np.uint16).sum(axis=3, dtype=np.float32)
    return sums / factor**2, factor


def _contrast(deviation: np.ndarray, rows: float) -> np.ndarray:
    """Returns the difference between the shape's color and the background, `(3,)`.

    It is the median over the pixels of each frame that differ most; their number is 40 % of the
    smallest shape's area. Noise deviates in all directions, so its median is near 0.
    """
    count = max(1, round(0.4 * (MIN_SHAPE_SIDE * rows) ** 2))
    flat = deviation.reshape(len(deviation), -1, 3)
    distance = np.square(flat).sum(axis=-1)
    core = np.argpartition(-distance, count - 1, axis=1)[:, :count]
    return np.median(np.take_along_axis(flat, core[..., None], axis=1), axis=(0, 1))


def _follow(coverage: np.ndarray, rows: float, stretch: float) -> Tracked:
    """Finds the shape in each frame."""
    reach = math.ceil(MAX_REACH * rows * max(stretch, 1)) + 1
    last = np.array(coverage.shape[:0:-1]) - 1
    middles = _locate(coverage, rows)
    # The square moves towards the centroid, until it contains the whole shape.
    for _ in range(2):
        _, offsets = _moments(_crop(coverage, middles, reach))
        middles = np.clip(middles + np.rint(offsets).astype(int), 0, last)
    crops = _crop(coverage, middles, reach)
    areas, offsets = _moments(crops)
    return Tracked(crops, areas, offsets, middles)


def _locate(coverage: np.ndarray, rows: float) -> np.ndarray:
    """Finds the pixel of each frame with the most coverage around it, `(frames, 2)`: x and y."""
    half = round(SIZES["large"] * rows / 3)
    window = 2 * half + 1
    sums = np.pad(_firm(coverage), ((0, 0), (half + 1, half), (half + 1, half)))
    sums = sums.cumsum(axis=1).cumsum(axis=2)
    high = sums[:, window:] - sums[:, :-window]
    inside = high[:, :, window:] - high[:, :, :-window]
    best = inside.reshape(len(coverage), -1).argmax(axis=1)
    return np.stack([best % inside.shape[2], best // inside.shape[2]], axis=-1)


def _crop(coverage: np.ndarray, middles: np.ndarray, reach: int) -> np.ndarray:
    """Crops squares of `2 * reach + 1` pixels around a pixel of each frame; 0 outside of it."""
    padded = np.pad(coverage, ((0, 0), (reach, reach), (reach, reach)))
    window = np.arange(2 * reach + 1)
    columns = middles[:, 0, None, None] + window
    rows = middles[:, 1, None, None] + window[:, None]
    return padded[np.arange(len(coverage))[:, None, None], rows, columns]


def _firm(coverage: np.ndarray) -> np.ndarray:
    """Removes the lowest and highest quarter of coverage, which noise changes most."""
    return np.clip(2 * coverage - 0.5, 0, 1)


def _moments(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns area in pixels, `(frames,)`, and centroid from the middle pixel, `(frames, 2)`.

    Counts only firm pixels and those next to them, because noise elsewhere would add up.
    """
    near = np.pad(_firm(crops) > 0, ((0, 0), (1, 1), (1, 1)))
    near = near[:, :-2] | near[:, 1:-1] | near[:, 2:]
    near = near[:, :, :-2] | near[:, :, 1:-1] | near[:, :, 2:]
    shape = np.where(near, crops, 0)
    area = shape.sum(axis=(1, 2))
    places = np.arange(crops.shape[1]) - crops.shape[1] // 2
    sums = np.stack([shape.sum(axis=1) @ places, shape.sum(axis=2) @ places], axis=-1)
    centroids = sums / np.maximum(area, 1)[:, None]
    return np.maximum(area, 0), np.clip(centroids, places[0], places[-1])


def _nearest(color: np.ndarray, palette: Mapping[str, tuple[int, int, int]]) -> str:
    """Returns the name of the nearest color, if it is within `MAX_COLOR_DISTANCE`."""
    distance = {name: float(np.linalg.norm(color - rgb)) for name, rgb in palette.items()}
    name = min(distance, key=lambda name: distance[name])
    return name if distance[name] <= MAX_COLOR_DISTANCE else UNKNOWN


def _color(background: np.ndarray, contrast: np.ndarray) -> str:
    """Returns the nearest color, allowing for a mixture with the background, which blur causes."""
    nearest = {}
    for name, rgb in COLORS.items():
        line = rgb - background
        share = np.clip(contrast @ line / (line @ line), MIN_FADED, 1)
        nearest[name] = tuple(background + share * line)
    return _nearest(background + contrast, nearest)


def _motion(path: np.ndarray, form: Mapping[str, str]) -> dict[str, str]:
    """Measures direction, motion and speed of a shape of this size and shape."""
    seen = recognise(path)
    if seen is None or seen.length < MIN_TRAVEL:
        return {}
    own = Combination(form["size"], "", form["shape"], seen.direction, "", seen.motion)
    found = {"direction": seen.direction}
    if seen.motion:
        share = seen.length / max_length(own, seen.turn)
        found |= {"motion": seen.motion, "speed": "quickly" if share > MIDDLE else "slowly"}
    return found
