"""Scenes of moving shapes: what a clip shows, where its shape is at each time, and its captions.

One shape of one color moves over a plain background for `DURATION` = 28 / 7.5 s. Lengths are in
frame heights, so a scene looks the same at every resolution. Positions are of the centroid,
relative to the frame's centre, x to the right and y down. The whole path of the shape is in the
central 1.6 x 1 heights, here called the field: all of a 64x40 or 256x160 frame. A wider frame shows
more background.

A caption always names five attributes (`Combination`):

- shape: circle, square (level) or equilateral triangle (pointing up)
- size: diameter of the circle through the shape's corners, small 0.44, large 0.64 heights. So
  shapes differ in area, which is visible through noise
- color, background: RGB of `COLORS` and `BACKGROUNDS`
- direction: one of 8, at multiples of 45 degrees, in which the shape starts; that of an arc is the
  direction from its start to its end

and a sixth, unless the motion is straight:

- motion: straight at constant speed, speeding up from rest, in an arc (clockwise, of 150 degrees),
  bouncing off the upper or lower edge (only diagonally), or turning back at an edge of the field.
  The last two turn while the shape touches the edge, so that the place of the turn follows from
  the shape's places before and after it

and sometimes a seventh:

- speed: "slowly" if the path is 30 to 50 % of the longest that this shape has room for in this
  direction and motion, "quickly" if it is 75 to 95 %; no word fits those between

What no caption names differs from clip to clip: the start, the length of the path, the time of a
turn, and the shade of the color.

Each of the 864 combinations of the first five attributes belongs to one split (`split_of`), with
all its motions and speeds, to test whether a model composes attributes that it has learned
separately:

- validation: 86 combinations for choosing settings
- test: 86 other combinations for the final measurement
- looks: all 8 directions of 12 looks (size, color, shape, background) for the final measurement.
  Training has none of these looks, but every look of validation and test in other directions
- train: the other 596 combinations. Every word and every pair of words occurs in them
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

DURATION = 28 / 7.5
ASPECT = 1.6
TRAVEL = (0.3, 0.95)  # length of a path, as a share of the longest that stays in the field
OFF_CENTER = 0.25  # heights to the middle of a path at most, in x and y, where no edge decides
TURNING = (0.35, 0.65)  # when a shape turns, as a share of the clip
ARC = math.radians(150)  # by which the heading of an arc turns
SHADE = 0.15  # of black or white that is mixed into a color at most

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
# What captions add of a motion to "moves" and to "moving".
MOTIONS = {
    "straight": ("", ""),
    "speeding up": (" and speeds up", " and speeding up"),
    "arc": (" in an arc", " in an arc"),
    "bouncing": (" and bounces", " and bouncing"),
    "turning back": (" and turns back", " and turning back"),
}
SPEEDS = {"": TRAVEL, "slowly": (0.3, 0.5), "quickly": (0.75, 0.95)}  # ranges within `TRAVEL`

ATTRIBUTES: dict[str, Mapping[str, Any]] = {
    "size": SIZES,
    "color": COLORS,
    "shape": SIDES,
    "direction": DIRECTIONS,
    "background": BACKGROUNDS,
    "motion": MOTIONS,
    "speed": SPEEDS,
}
NAMED = 5  # attributes that every caption names, which decide the split

TEMPLATES = (
    "a {size} {color} {shape} moving{speed} {direction}{turning} on a {background} background",
    "a {size} {color} {shape} moves{speed} {direction}{turns} across a {background} background",
    "on a {background} background, a {size} {color} {shape} is moving{speed} {direction}{turning}",
    "a {background} background with a {size} {color} {shape} that goes{speed} {direction}{turns}",
    "a {color} {shape} of {size} size drifts{speed} {direction}{turns} in front of a {background} "
    "background",
)

LOOKS = 12  # held out in every direction; with fewer, a word would be missing


class Combination(NamedTuple):
    """The attributes that a caption names. No `speed` stands for any."""

    size: str
    color: str
    shape: str
    direction: str
    background: str
    motion: str = "straight"
    speed: str = ""


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a clip shows.

    Attributes:
      combination: its attributes.
      x: of the centroid at time 0, in heights from the frame's centre.
      y: likewise.
      length: of the path, in heights.
      turn: when it turns, as a share of the clip, if its motion has a turn.
      shade: -1 for the darkest and 1 for the lightest shade of the color.
    """

    combination: Combination
    x: float
    y: float
    length: float
    turn: float = 0.5
    shade: float = 0.0

    def centroid(self, times: ArrayLike) -> np.ndarray:
        """Returns the centroid at times in seconds: `(..., 2)`, x and y."""
        shares = np.asarray(times) / DURATION
        own = path(self.combination.motion, self.combination.direction, shares, self.turn)
        return np.array([self.x, self.y]) + self.length * own

    @property
    def color(self) -> np.ndarray:
        """RGB of the shape, `(3,)` fp32 from 0 to 255."""
        pure = np.array(COLORS[self.combination.color], np.float32)
        return pure + SHADE * abs(self.shade) * ((255.0 if self.shade > 0 else 0.0) - pure)


class Moving(Protocol):
    """What can be drawn: a shape with its attributes and its path."""

    @property
    def combination(self) -> Combination:
        """The attributes."""

    @property
    def color(self) -> np.ndarray:
        """See `Scene.color`."""

    def centroid(self, times: ArrayLike) -> np.ndarray:
        """See `Scene.centroid`."""


def path(motion: str, direction: str, shares: ArrayLike, turn: float = 0.5) -> np.ndarray:
    """Returns the places of a path of length 1 that starts at 0.

    Args:
      motion: name in `MOTIONS`.
      direction: name in `DIRECTIONS`.
      shares: times as shares of the clip, `(...)`.
      turn: when it turns, as a share of the clip.

    Returns:
      `(..., 2)`: x and y.
    """
    time = np.asarray(shares, float)[..., None]
    heading = _heading(direction)
    if motion == "speeding up":
        return time**2 * heading
    if motion == "arc":
        # The heading turns from ARC / 2 to the left of the direction to ARC / 2 to its right.
        along = np.sin(ARC / 2) - np.sin(ARC * (0.5 - time))
        left = np.cos(ARC * (0.5 - time)) - np.cos(ARC / 2)
        return (along * heading + left * np.array([heading[1], -heading[0]])) / ARC
    if turns_at_edge(motion):
        back = np.minimum(time, 2 * turn - time)
        across = time if motion == "bouncing" else back
        return np.concatenate([across, back], axis=-1) * heading
    return time * heading


def turns_at_edge(motion: str) -> bool:
    """Returns whether a motion turns at an edge."""
    return motion in ("bouncing", "turning back")


def motions(direction: str) -> list[str]:
    """Returns the motions that there are in a direction."""
    diagonal = np.all(np.array(DIRECTIONS[direction]) != 0)
    return [motion for motion in MOTIONS if motion != "bouncing" or diagonal]


def combinations() -> list[Combination]:
    """Returns all combinations of the first five attributes, in a fixed order."""
    named = list(ATTRIBUTES.values())[:NAMED]
    return [Combination(*values) for values in itertools.product(*named)]


def split_of(combination: Combination) -> str:
    """Returns the split of a combination: "train", "validation", "test" or "looks"."""
    return _splits().get(combination[:NAMED], "train")


def look(combination: Combination) -> tuple[str, ...]:
    """Returns the attributes that a single frame shows."""
    return (*combination[:3], combination.background)


def difference(seen: Combination, asked: Combination) -> list[str]:
    """Returns the names of the attributes that differ; where no speed is asked for, any will do."""
    return [
        name
        for name, own, wanted in zip(Combination._fields, seen, asked, strict=True)
        if own != wanted and (name, wanted) != ("speed", "")
    ]


def caption(combination: Combination, template: int = 0) -> str:
    """Returns the caption of a combination; all captions of one template differ."""
    turns, turning = MOTIONS[combination.motion]
    speed = combination.speed and f" {combination.speed}"
    words = combination._asdict() | {"speed": speed, "turns": turns, "turning": turning}
    return TEMPLATES[template].format(**words)


def random_scene(combination: Combination, rng: np.random.Generator) -> Scene:
    """Draws a random scene with these attributes, whose shape stays in the field."""
    motion, direction = combination.motion, combination.direction
    turn = float(rng.uniform(*TURNING))
    length = float(rng.uniform(*SPEEDS[combination.speed])) * max_length(combination, turn)
    own = length * _course(motion, direction, turn)
    low, high = extent(combination)
    field = np.array([ASPECT, 1]) / 2
    first, last = -field - low - own.min(axis=0), field - high - own.max(axis=0)
    middle = (own.min(axis=0) + own.max(axis=0)) / 2
    place = rng.uniform(
        np.clip(-OFF_CENTER - middle, first, last), np.clip(OFF_CENTER - middle, first, last)
    )
    if turns_at_edge(motion):
        # Where it turns it touches the edge, which is the first or last place that it can have.
        axis = edge_axis(direction)
        place[axis] = (last if _heading(direction)[axis] > 0 else first)[axis]
    x, y = place
    return Scene(combination, float(x), float(y), length, turn, float(rng.uniform(-1, 1)))


def edge_axis(direction: str) -> int:
    """Returns the axis along which a shape meets the edge: 1, which is y, unless it is level."""
    return int(DIRECTIONS[direction][1] != 0)


def max_length(combination: Combination, turn: float = 0.5) -> float:
    """Returns the length of the longest path of a combination that stays in the field."""
    own = _course(combination.motion, combination.direction, turn)
    low, high = extent(combination)
    reach = own.max(axis=0) - own.min(axis=0)
    moves = reach > 1e-9
    return float(((np.array([ASPECT, 1]) - (high - low))[moves] / reach[moves]).min())


def area(shape: str) -> float:
    """Returns the area of a shape of diameter 1, in the sense of `SIZES`."""
    sides = SIDES[shape]
    return (sides * math.sin(2 * math.pi / sides) / 2 if sides else math.pi) / 4


def inradius(shape: str) -> float:
    """Returns the inradius of a shape of diameter 1."""
    return (math.cos(math.pi / SIDES[shape]) if SIDES[shape] else 1) / 2


def around(sides: int, turn: float = 0.0) -> np.ndarray:
    """Returns normals `(sides, 2)` of the edges of a polygon that stands on an edge, turned."""
    angles = np.pi / 2 + turn + 2 * np.pi * np.arange(sides) / sides
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def extent(combination: Combination) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bounding box around the centroid: minima and maxima of x and y, in heights."""
    sides = SIDES[combination.shape]
    radius = SIZES[combination.size] * inradius(combination.shape)
    if not sides:
        return np.full(2, -radius), np.full(2, radius)
    corners = radius / math.cos(math.pi / sides) * around(sides, math.pi / sides)
    return corners.min(axis=0), corners.max(axis=0)


def _course(motion: str, direction: str, turn: float) -> np.ndarray:
    """Returns places along a path of length 1, with the one where it turns."""
    return path(motion, direction, np.append(np.linspace(0, 1, 57), turn), turn)


def _heading(direction: str) -> np.ndarray:
    vector = np.array(DIRECTIONS[direction])
    return vector / np.linalg.norm(vector)


def _ranked(names: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Sorts names by the SHA-256 of their words, which is independent of their meaning."""
    return sorted(names, key=lambda words: hashlib.sha256(" ".join(words).encode()).digest())


@functools.cache
def _splits() -> dict[tuple[str, ...], str]:
    """Returns the split of the first five attributes, where these are held out of training.

    Combinations are sorted by their hashes. Validation has the first tenth, test the last tenth.
    The looks are the first `LOOKS` looks that neither of them has in any direction, so that the
    three splits are disjoint.
    """
    named = {one[:NAMED]: look(one) for one in combinations()}
    ranked = _ranked(named)
    tenth = len(ranked) // 10
    splits = dict.fromkeys(ranked[:tenth], "validation") | dict.fromkeys(ranked[-tenth:], "test")
    free = set(named.values()) - {named[words] for words in splits}
    looks = _ranked(free)[:LOOKS]
    return splits | {words: "looks" for words, own in named.items() if own in looks}
