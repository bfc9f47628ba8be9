"""What a stage wants of a clip, whatever the clip comes from."""

import dataclasses

import numpy as np

from show1_jax.errors import InputError

ROUNDING = 1e-3  # seconds; containers round their timestamps, often to milliseconds


class UnusableClip(Exception):
    """A clip that cannot be trained on, and why; the pipeline skips and names it."""


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """Size and timing of a clip.

    `fps` is the rate at which frames are taken from the clip; without it they
    are spread evenly over the whole clip, its first and last frame included.
    Raises InputError for values that make no clip.
    """

    frames: int
    height: int
    width: int
    fps: float | None = None

    def __post_init__(self) -> None:
        """Refuses values that make no clip."""
        if min(self.frames, self.height, self.width) < 1:
            raise InputError(
                f"frames, height and width must be at least 1, "
                f"not {self.frames}, {self.height} and {self.width}"
            )
        if self.fps is not None and not self.fps > 0:
            raise InputError(f"frames per second must be positive, not {self.fps}")

    def times(self, duration: float, rng: np.random.Generator | None) -> np.ndarray:
        """When to take the frames, in seconds after the clip's first frame.

        Args:
          duration: seconds from the clip's first frame to its last.
          rng: places the frames in the clip; in its middle without one.

        Raises:
          UnusableClip: if the clip is too short.
        """
        if self.fps is None:
            return np.linspace(0, duration, self.frames)
        span = (self.frames - 1) / self.fps
        if span > duration + ROUNDING:
            raise UnusableClip(f"too short: {duration:.2f} s where {span:.2f} s are needed")
        slack = max(duration - span, 0)
        start = slack / 2 if rng is None else rng.uniform(0, slack)
        return start + np.arange(self.frames) / self.fps
