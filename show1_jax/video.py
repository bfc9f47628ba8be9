"""What the cascade makes of a prompt and a seed."""

import base64
import dataclasses
import functools
import tempfile
from os import PathLike

import numpy as np
from etils.epath import Path

from show1_jax.errors import InputError
from show1_jax.media import to_uint8, write_gif, write_mp4


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """A video, and what every stage made on the way to it.

    Attributes:
      prompt: what it was to show.
      seed: its random seed.
      fps: frames per second of `frames`.
      stages: by stage, in order, its result: fp32 `(frames, height, width, 3)`, about [-1, 1]; of
        a stage that makes one frame `(height, width, 3)`.
    """

    prompt: str
    seed: int
    fps: float
    stages: dict[str, np.ndarray]

    @functools.cached_property
    def frames(self) -> np.ndarray:
        """The last clip that was made: `(frames, height, width, 3)` uint8.

        Where only single frames were made, the last one as a clip.
        """
        clips = [made for made in self.stages.values() if made.ndim == 4]
        return to_uint8(clips[-1] if clips else list(self.stages.values())[-1][None])

    def save(self, path: str | PathLike[str]) -> None:
        """Writes `frames` to a file.

        Args:
          path: ends in .mp4 or .gif.

        Raises:
          InputError: if it ends otherwise, or cannot be written.
        """
        write = {".mp4": write_mp4, ".gif": write_gif}.get(Path(path).suffix.lower())
        if write is None:
            raise InputError(f"{path} is neither .mp4 nor .gif: give a path that ends in one")
        write(path, self.frames, self.fps)

    def _repr_html_(self) -> str:
        """The video as a notebook plays it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            self.save(path)
            data = base64.b64encode(path.read_bytes()).decode()
        width = self.frames.shape[2]
        return (
            f'<video width="{max(width, 320)}" style="image-rendering: pixelated" '
            f'autoplay loop muted controls src="data:video/mp4;base64,{data}"></video>'
        )

    def __repr__(self) -> str:
        """Prompt, seed and size in one line."""
        frames, height, width, _ = self.frames.shape
        return (
            f"Video({self.prompt!r}, seed={self.seed}: {frames} frames of {width}x{height}, "
            f"{self.fps:g} fps)"
        )
