"""Size and timing of the clips that a stage trains on."""

import dataclasses

import numpy as np

from show1_jax.errors import InputError

ROUNDING = 1e-3  # seconds; containers round their timestamps, often to milliseconds


class UnusableClip(Exception):
    """A clip that cannot be used, and why. The pipeline logs and skips it."""


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """Size and timing of a clip.

    Attributes:
      frames: number of frames.
      height: in pixels.
      width: in pixels.
      fps: frames per second to sample at. None samples the whole clip evenly, including its
        first and last frame.
    """

    frames: int
    height: int
    width: int
    fps: float | None = None

    def __post_init__(self) -> None:
        """Raises InputError if a number is out of range."""
        if min(self.frames, self.height, self.width) < 1:
            raise InputError(
                f"frames, height and width are {self.frames}, {self.height} and {self.width}, but "
                "must be at least 1"
            )
        if self.fps is not None and not self.fps > 0:
            raise InputError(f"fps is {self.fps}, but must be more than 0")

    def times(self, duration: float, rng: np.random.Generator | None) -> np.ndarray:
        """Chooses the times of the frames, in seconds after the clip's first frame.

        Args:
          duration: seconds from the clip's first frame to its last.
          rng: chooses where in the clip the frames are; None for its middle.

        Raises:
          UnusableClip: if the clip is too short.
        """
        if self.fps is None:
            return np.linspace(0, duration, self.frames)
        span = (self.frames - 1) / self.fps
        if span > duration + ROUNDING:
            raise UnusableClip(f"it is too short: {duration:.2f} s, but {span:.2f} s are needed")
        slack = max(duration - span, 0)
        start = slack / 2 if rng is None else rng.uniform(0, slack)
        return start + np.arange(self.frames) / self.fps
