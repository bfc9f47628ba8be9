"""Moving shapes: a dataset of captioned clips whose attributes can all be measured.

One shape of one color moves in a straight line over a plain background. A clip lasts
`DURATION` = 28 / 7.5 s. It has 29 frames at 7.5 per second, or 8 keyframes; keyframe k is frame 4k.

Lengths are in frame heights, so a scene looks the same at every resolution. Positions are of the
centroid, relative to the frame's centre, x to the right and y down. The whole path of the shape is
in the central 1.6 x 1 heights. These are all of a 64x40 or 256x160 frame; a wider frame shows more
background.

- shape: circle, square (level) or equilateral triangle (pointing up)
- size: diameter of the circle through the shape's corners, small 0.44, large 0.64 heights. So
  shapes differ in area, which is visible through noise
- color, background: RGB of `COLORS` and `BACKGROUNDS`
- direction: one of 8, at multiples of 45 degrees
- speed: constant. In the whole clip the shape moves by 60 to 90 % (`TRAVEL`) of the largest
  possible distance in its direction: from 0.22 heights (a large circle, up or down) to 1.16 (a
  small square, sideways)
- place: the middle of the path is up to 0.1 heights (`OFF_CENTER`) from the frame's centre in x
  and y, if the path fits. So a shape that moves to the right starts on the left

Each of the 864 combinations of attributes belongs to one split (`split_of`), to test whether a
model composes attributes that it has learned separately:

- validation: 86 combinations for choosing settings
- test: 86 other combinations for the final measurement
- looks: all 8 directions of 12 looks (size, color, shape, background) for the final measurement.
  Training has none of these looks, but every look of validation and test in other directions
- train: the other 596 combinations. Every word and every pair of words occurs in them

The dataset stores only the parameters of scenes. They are rendered at the resolution and frame
rate that a stage needs, which is faster than decoding a video.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import ArrayLike

from show1_jax.data.clip import ClipSpec
from show1_jax.errors import InputError

DURATION = 28 / 7.5
ASPECT = 1.6
TRAVEL = (0.6, 0.9)
OFF_CENTER = 0.1

SIZES = {"small": 0.44, "large": 0.64}
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 190),
    "cyan": (40, 200, 220),
}
SIDES = {"circle": 0, "square": 4, "triangle": 3}
DIRECTIONS = {
    "right": (1, 0),
    "down and to the right": (1, 1),
    "down": (0, 1),
    "down and to the left": (-1, 1),
    "left": (-1, 0),
    "up and to the left": (-1, -1),
    "up": (0, -1),
    "up and to the right": (1, -1),
}
BACKGROUNDS = {"black": (0, 0, 0), "gray": (128, 128, 128), "white": (255, 255, 255)}

ATTRIBUTES: dict[str, Mapping[str, Any]] = {
    "size": SIZES,
    "color": COLORS,
    "shape": SIDES,
    "direction": DIRECTIONS,
    "background": BACKGROUNDS,
}

TEMPLATES = (
    "a {size} {color} {shape} moving {direction} on a {background} background",
    "a {size} {color} {shape} moves {direction} across a {background} background",
    "on a {background} background, a {size} {color} {shape} is moving {direction}",
    "a {background} background with a {size} {color} {shape} that goes {direction}",
    "a {color} {shape} of {size} size drifts {direction} in front of a {background} background",
)

LOOKS = 12  # held out in every direction; with fewer, a word would be missing
SUBPIXELS = 2  # per side of a pixel; edges are antialiased in each


class Combination(NamedTuple):
    """The attributes that a caption names."""

    size: str
    color: str
    shape: str
    direction: str
    background: str


@dataclasses.dataclass(frozen=True)
class Scene:
    """The parameters of a clip: attributes, centroid at time 0 (`x`, `y`), and speed per second."""

    combination: Combination
    x: float
    y: float
    speed: float

    def centroid(self, times: ArrayLike) -> np.ndarray:
        """Returns the centroid at times in seconds: `(..., 2)`, x and y."""
        step = self.speed * _heading(self.combination.direction)
        return np.array([self.x, self.y]) + np.asarray(times)[..., None] * step


def combinations() -> list[Combination]:
    """Returns all combinations of attributes, in a fixed order."""
    return [Combination(*values) for values in itertools.product(*ATTRIBUTES.values())]


def split_of(combination: Combination) -> str:
    """Returns the split of a combination: "train", "validation", "test" or "looks"."""
    return _splits().get(combination, "train")


def look(combination: Combination) -> tuple[str, ...]:
    """Returns the attributes that a single frame shows: all except the direction."""
    return tuple(value for name, value in combination._asdict().items() if name != "direction")


def caption(combination: Combination, template: int = 0) -> str:
    """Returns the caption of a combination; all captions of one template differ."""
    return TEMPLATES[template].format(**combination._asdict())


def random_scene(combination: Combination, rng: np.random.Generator) -> Scene:
    """Draws a random scene with these attributes, whose shape stays in the frame."""
    heading = _heading(combination.direction)
    low, high = _extent(combination)
    room = np.array([ASPECT, 1]) - (high - low)
    distance = rng.uniform(*TRAVEL) * np.min(room[heading != 0] / np.abs(heading[heading != 0]))
    travel = distance * heading
    middle, slack = -(low + high) / 2, (room - np.abs(travel)) / 2  # where the path's middle can be
    bounds = np.maximum(middle - slack, -OFF_CENTER), np.minimum(middle + slack, OFF_CENTER)
    x, y = rng.uniform(*bounds) - travel / 2
    return Scene(combination, float(x), float(y), float(distance / DURATION))


class Moving(Protocol):
    """What `render` can draw: a shape with its attributes and its path."""

    @property
    def combination(self) -> Combination:
        """The attributes."""

    def centroid(self, times: ArrayLike) -> np.ndarray:
        """See `Scene.centroid`."""


def render(scene: Moving, frames: int | ArrayLike, height: int, width: int) -> np.ndarray:
    """Draws a scene, antialiased.

    Args:
      scene: to draw.
      frames: number of frames, evenly over the clip, or their times in seconds.
      height: of frames in pixels.
      width: of frames in pixels.

    Returns:
      `(frames, height, width, 3)` uint8.
    """
    times = np.linspace(0, DURATION, frames) if isinstance(frames, int) else np.asarray(frames)
    background = np.array(BACKGROUNDS[scene.combination.background], np.float32)
    contrast = np.array(COLORS[scene.combination.color], np.float32) - background
    low, high = (height * extent for extent in _extent(scene.combination))
    video = np.empty((len(times), height, width, 3), np.uint8)
    video[:] = background.astype(np.uint8)
    for frame, centroid in zip(video, scene.centroid(times), strict=True):
        x, y = centroid * height + [width / 2, height / 2]
        left, right = np.clip([math.floor(x + low[0]), math.ceil(x + high[0])], 0, width)
        top, bottom = np.clip([math.floor(y + low[1]), math.ceil(y + high[1])], 0, height)
        covered = coverage(
            scene.combination, height, np.arange(left, right) - x, np.arange(top, bottom) - y
        )
        frame[top:bottom, left:right] = background + covered[..., None] * contrast + 0.5
    return video


class MovingShapesConfig(tfds.core.BuilderConfig):
    """The number of clips in each split."""

    def __init__(
        self, train: int = 20_000, validation: int = 1_000, test: int = 1_000, looks: int = 1_000
    ):
        """Raises InputError if a split would be empty."""
        self.clips = {"train": train, "validation": validation, "test": test, "looks": looks}
        if min(self.clips.values()) < 1:
            found = ", ".join(f"{name} {count}" for name, count in self.clips.items())
            raise InputError(f"the splits have {found} clips, but each needs at least 1")
        super().__init__(name="_".join(map(str, self.clips.values())))


class MovingShapes(tfds.core.GeneratorBasedBuilder):
    """Scenes and captions. Each split has its own combinations, which are equally frequent."""

    VERSION = tfds.core.Version("6.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "6.0.0": "Test combinations and looks are held out; validation has the combinations "
        "that were held_out.",
        "5.0.0": "86 combinations are held out.",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            name: tfds.features.ClassLabel(names=list(values))
            for name, values in ATTRIBUTES.items()
        }
        features = {
            "name": tfds.features.Text(),
            "caption": tfds.features.Text(),
            **labels,
            "x": np.float32,
            "y": np.float32,
            "speed": np.float32,
        }
        return tfds.core.DatasetInfo(
            builder=self, description=__doc__, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {
            split: self._generate_examples(split, clips)
            for split, clips in self.builder_config.clips.items()
        }

    def _generate_examples(self, split: str, clips: int) -> Iterator[tuple[int, dict[str, Any]]]:
        allowed = [c for c in combinations() if split_of(c) == split]
        seed = list(self.builder_config.clips).index(split)
        order = np.random.default_rng(seed).permutation(len(allowed))
        for index in range(clips):
            rng = np.random.default_rng((seed, index))
            scene = random_scene(allowed[order[index % len(allowed)]], rng)
            yield (
                index,
                {
                    "name": f"{split}-{index}",
                    "caption": caption(scene.combination, int(rng.integers(len(TEMPLATES)))),
                    **scene.combination._asdict(),
                    "x": scene.x,
                    "y": scene.y,
                    "speed": scene.speed,
                },
            )


def scene_of(record: Mapping[str, Any]) -> Scene:
    """Returns the scene of a stored record."""
    names = (list(values)[record[name]] for name, values in ATTRIBUTES.items())
    return Scene(Combination(*names), *(float(record[name]) for name in ("x", "y", "speed")))


def read(record: Mapping[str, Any], spec: ClipSpec, rng: np.random.Generator | None) -> np.ndarray:
    """Renders a stored record with the size and timing of `spec`.

    Returns:
      `(frames, height, width, 3)` uint8.

    Raises:
      UnusableClip: if `spec` needs more than `DURATION`.
    """
    return render(scene_of(record), spec.times(DURATION, rng), spec.height, spec.width)


def _ranked(names: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Sorts names by the SHA-256 of their words, which is independent of their meaning."""
    return sorted(names, key=lambda words: hashlib.sha256(" ".join(words).encode()).digest())


@functools.cache
def _splits() -> dict[tuple[str, ...], str]:
    """Returns the split of each combination that is held out of training.

    Combinations are sorted by their hashes. Validation has the first tenth, test the last tenth.
    The looks are the first `LOOKS` looks that neither of them has in any direction, so that the
    three splits are disjoint.
    """
    ranked = _ranked(combinations())
    tenth = len(ranked) // 10
    splits = dict.fromkeys(ranked[:tenth], "validation") | dict.fromkeys(ranked[-tenth:], "test")
    free = {look(c) for c in combinations()} - {look(Combination(*names)) for names in splits}
    looks = _ranked(free)[:LOOKS]
    return splits | {c: "looks" for c in combinations() if look(c) in looks}


def _heading(direction: str) -> np.ndarray:
    vector = np.array(DIRECTIONS[direction])
    return vector / np.linalg.norm(vector)


def area(shape: str) -> float:
    """Returns the area of a shape of diameter 1, in the sense of `SIZES`."""
    sides = SIDES[shape]
    return (sides * math.sin(2 * math.pi / sides) / 2 if sides else math.pi) / 4


def _inradius(sides: int) -> float:
    """Returns the inradius of a regular polygon in a circle of diameter 1; a circle has 0 sides."""
    return (math.cos(math.pi / sides) if sides else 1) / 2


def _around(sides: int, turn: float = 0.0) -> np.ndarray:
    """Returns normals `(sides, 2)` of the edges of a polygon that stands on an edge, turned."""
    angles = np.pi / 2 + turn + 2 * np.pi * np.arange(sides) / sides
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _extent(combination: Combination) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bounding box around the centroid: minima and maxima of x and y, in heights."""
    sides = SIDES[combination.shape]
    inradius = SIZES[combination.size] * _inradius(sides)
    if not sides:
        return np.full(2, -inradius), np.full(2, inradius)
    corners = inradius / math.cos(math.pi / sides) * _around(sides, math.pi / sides)
    return corners.min(axis=0), corners.max(axis=0)


def coverage(
    combination: Combination, height: float, left: np.ndarray, top: np.ndarray
) -> np.ndarray:
    """Computes the share of each pixel that the shape covers, `(rows, columns)`.

    Args:
      combination: gives shape and size.
      height: of the frame in pixels.
      left: left edges of the pixels `(columns,)`, in pixels from the centroid.
      top: top edges of the pixels `(rows,)`, in pixels from the centroid.
    """
    sides = SIDES[combination.shape]
    inradius = height * SIZES[combination.size] * _inradius(sides)
    offsets = (np.arange(SUBPIXELS) + 0.5) / SUBPIXELS
    x = (left[:, None] + offsets).ravel().astype(np.float32)
    y = (top[:, None] + offsets).reshape(-1, 1).astype(np.float32)

    def inside(depth: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + SUBPIXELS * depth, 0, 1)

    if sides:
        edges = [inside(inradius - a * x - b * y) for a, b in _around(sides)]
        coverage = np.prod(edges, axis=0)
    else:
        coverage = inside(inradius - np.hypot(x, y))
    return coverage.reshape(len(top), SUBPIXELS, len(left), SUBPIXELS).mean(axis=(1, 3))
