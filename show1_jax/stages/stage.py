"""What every stage of the cascade answers for itself: the one interface that all other code uses.

A stage is built once from the config (`from_config`), which checks its numbers, and never changes.
Its class says where its networks are stored and what it starts from; its methods say what its
denoiser is shown, in sampling, training and inversion alike.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from show1_jax.configuration import build
from show1_jax.data.clip import ClipSpec
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import Solver, SolverConfig
from show1_jax.errors import InputError
from show1_jax.media import resize_uint8
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.stages.sampling import Call
from show1_jax.stages.training import Example

Encoder = Literal["t5", "clip"]
CLIP_SECTION = ("height", "width", "fps")  # what others' clips depend on, of a stage's section


class Extra(NamedTuple):
    """A program that sampling compiles beside the denoising loop.

    Attributes:
      name: for tables.
      function: the jitted function of (network, parameters, array, `static`).
      network: which of the stage's networks it runs.
      shape: of its array, fp32, the batch first.
      static: its static argument.
      repeats: work in all over the work that a compiler counts, which takes a loop's body once.
    """

    name: str
    function: Callable[..., Any]
    network: str
    shape: tuple[int, ...]
    static: int
    repeats: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(abc.ABC):
    """One stage: its settings, and what its denoiser is shown.

    Video is `(batch, frames, height, width, 3)` in [-1, 1]. Class attributes:

      name: of the stage, and of its section in a config.
      folder: the released folder.
      pipeline: the class that the folder's index names.
      encoder: which text encoder it needs.
      networks: what it runs; "unet" is its denoiser.
      trained: which of them training makes.
      needs: the earlier stages whose results it starts from.
      uses: earlier stages whose results it uses if they are there; see `fallback`.
      size_of: the section that has the size of its frames.
      image: whether it makes one frame, `(batch, height, width, 3)`.
      noise_conditioned: whether its denoiser is told a noise level of its condition.
      conditioned: whether its denoiser is shown other frames.
      in_cascade: whether training exports it into the checkpoint of the whole cascade.
      depends: settings in other sections that its training depends on.

    Attributes:
      frames: of a result.
      height: of a result, in pixels.
      width: of a result, in pixels.
      fps: frames per second of a result.
      steps: of the solver.
      guidance: the guidance scale.
      dropout: whether dropout stays on while sampling.
      negative_prompt: what guidance leads away from.
      head_reading: how `attention_head_dim` of a checkpoint is read: "released", "width" or
        "number".
      adapters: FILE or FILE=WEIGHT each.
      noise_level: the timestep to which the condition is noised; None for stages without.
      noise_schedule: the schedule of that noise; None likewise.
      max_noise_level: training draws levels below it.
      unet: the denoiser that the config describes; a checkpoint's own decides when sampling.
      solver: the solver that the config describes; likewise.
      section: the settings as they are in the config.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    pipeline: ClassVar[str]
    encoder: ClassVar[Encoder] = "t5"
    networks: ClassVar[tuple[str, ...]] = ("unet",)
    trained: ClassVar[str] = "unet"
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    size_of: ClassVar[str] = ""
    image: ClassVar[bool] = False
    noise_conditioned: ClassVar[bool] = False
    conditioned: ClassVar[bool] = False
    in_cascade: ClassVar[bool] = True
    depends: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    frames: int
    height: int
    width: int
    fps: float
    steps: int
    guidance: float
    dropout: bool = False
    negative_prompt: str = ""
    head_reading: str = "released"
    adapters: tuple[str, ...] = ()
    noise_level: int | None = None
    noise_schedule: NoiseSchedule | None = None
    max_noise_level: int = 1000
    unet: UNetConfig
    solver: SolverConfig
    section: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """Builds the stage from a config such as `configs/show1.py`.

        Raises:
          InputError: if a setting is missing or no such number.
        """

    @classmethod
    def common(cls, config: ConfigDict) -> dict[str, Any]:
        """The attributes that all stages read from their section in the same way.

        Raises:
          InputError: if one is wrong.
        """
        section = config[cls.name]
        solver = solver_config(section.solver, cls.name)
        own: dict[str, Any] = {
            "steps": section.steps,
            "guidance": float(section.guidance),
            "unet": build(UNetConfig, section.unet, f"{cls.name}.unet"),
            "solver": solver,
            "section": section.to_dict(),
        }
        for name in ("dropout", "negative_prompt", "head_reading"):
            if name in section:
                own[name] = section[name]
        own["adapters"] = tuple(section.get("adapters", ()))
        if "noise_schedule" in section:
            own["noise_schedule"] = build(
                NoiseSchedule, section.noise_schedule, f"{cls.name}.noise_schedule"
            )
            own["noise_level"] = section.noise_level
            last = solver.schedule.train_steps - 1
            cls._check_range("noise_level", section.noise_level, 0, last)
        if not math.isfinite(section.guidance):
            raise InputError(f"{cls.name}.guidance is {section.guidance}: give a finite number")
        if "fps" in section:
            cls._check_range("fps", section.fps, 0.01, 1000)
            own["fps"] = section.fps
        training = config.get("train", {}).get(cls.name, {})
        if "max_noise_level" in training:
            own["max_noise_level"] = training["max_noise_level"]
        return own

    @classmethod
    def _check_range(cls, name: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            raise InputError(f"{cls.name}.{name} is {value}, but must lie within {low} to {high}")

    @classmethod
    def at_least(cls, section: ConfigDict, name: str, low: int) -> int:
        """A whole number of a section; raises InputError if it is below `low`."""
        if section[name] < low:
            raise InputError(f"{cls.name}.{name} is {section[name]}, but must be at least {low}")
        return section[name]

    @classmethod
    def stored_with(cls) -> str:
        """The name of the stage in whose folder a checkpoint keeps the networks."""
        return cls.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one result: `(frames, height, width, 3)`, or of one frame."""
        size = (self.height, self.width, 3)
        return size if self.image else (self.frames, *size)

    @property
    def batch_shape(self) -> tuple[int, int, int, int, int]:
        """The shape `(rows, frames, height, width, channels)` denoised together for one clip."""
        return (1, self.frames, self.height, self.width, 3)

    @property
    def pieces_shape(self) -> tuple[int, int, int, int, int]:
        """The shape `(pieces, frames, height, width, channels)` that `split` makes of a clip."""
        return self.batch_shape

    @property
    def clip(self) -> ClipSpec:
        """The clips that inversion reads; a stage that makes one frame takes their first."""
        return ClipSpec(self.frames, self.height, self.width, self.fps)

    @property
    def training_clip(self) -> ClipSpec:
        """The clips that training reads."""
        return ClipSpec(self.batch_shape[1], self.height, self.width, self.fps)

    @property
    def strength(self) -> float:
        """The share of the solver's steps that is executed."""
        return 1.0

    def size_multiple(self, unet: Any) -> int:
        """What height and width must be multiples of for a denoiser."""
        return unet.config.size_multiple

    def check(self, solver: Solver) -> None:
        """Raises InputError for settings with which sampling would fail."""
        del solver

    def step_count(self, solver: Solver) -> int:
        """How many steps the denoiser takes for a clip, in all windows together."""
        return solver.num_steps * (self.pieces_shape[0] // self.batch_shape[0])

    def check_training(self) -> None:  # noqa: B027  (most stages have nothing to check)
        """Raises InputError for settings with which training would fail."""

    def with_networks(self, networks: Mapping[str, nn.Module]) -> Self:
        """The stage with the networks that it runs besides its denoiser."""
        own = {name: module for name, module in networks.items() if name != "unet"}
        return dataclasses.replace(self, **own) if own else self  # type: ignore[arg-type]

    def module(self, dtype: Any, remat: str | None = None) -> UNet:
        """The denoiser that the config describes, to compute in `dtype`."""
        return UNet(self.unet, dtype, remat=remat)

    def other_modules(self, dtype: Any) -> dict[str, nn.Module]:
        """The other networks that the config describes."""
        del dtype
        return {}

    def prepare(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """What `sample` starts from, given the results of earlier stages, on the host."""
        return inputs

    def fallback(self, name: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """What stands for a result in `uses` that is not there, given one clip's others."""
        raise NotImplementedError(name)

    @abc.abstractmethod
    def sample(self, call: Call, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """Samples a batch of clips.

        Args:
          call: network, parameters, text, seeds, guidance.
          inputs: by name, the results `(batch, ...)` of `needs` and `uses`, from `prepare`.

        Returns:
          `(batch, *shape)` in [-1, 1].
        """

    @abc.abstractmethod
    def example(self, key: jax.Array, video: jax.Array, params: Mapping[str, Any]) -> Example:
        """The training example of clips `(batch, frames, height, width, 3)`.

        Args:
          key: a random key.
          video: in [-1, 1]; see `training_clip`.
          params: of the stage's networks besides the denoiser.
        """

    @abc.abstractmethod
    def split(self, video: jax.Array, key: jax.Array, params: Mapping[str, Any]) -> Example:
        """A finished clip as its denoiser made it, piece by piece; the inverse of `join`.

        Args:
          video: `(frames, height, width, 3)`.
          key: of the clip; see `clip_keys`.
          params: of the stage's networks besides the denoiser.
        """

    def join(self, pieces: jax.Array, params: Mapping[str, Any]) -> jax.Array:
        """Results of pieces that the denoiser made; the inverse of `split`.

        Args:
          pieces: `(batch, pieces, frames, height, width, channels)`.
          params: of the stage's networks besides the denoiser.

        Returns:
          `(batch, *shape)`.
        """
        del params
        return pieces[:, 0]

    def preview(self, clean: jax.Array, params: Mapping[str, Any]) -> jax.Array:
        """What is to be seen of clips that are being denoised; a window where there are several.

        Args:
          clean: the samples that the denoiser predicts now, as `Call.watch` receives them.
          params: of the stage's networks besides the denoiser.

        Returns:
          `(batch, frames, height, width, 3)` or, of images, `(batch, height, width, 3)`.
        """
        at_once = self.batch_shape[0]
        pieces = clean.reshape(-1, at_once, *clean.shape[1:])
        return pieces[:, 0] if at_once < self.pieces_shape[0] else self.join(pieces, params)

    def earlier(self, video: jax.Array) -> dict[str, jax.Array]:
        """What earlier stages would have made of true clips `(batch, frames, height, width, 3)`."""
        del video
        return {}

    def filtered(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """What a simple filter makes of earlier results, uint8: bicubic enlargement."""
        (small, *_) = inputs.values()
        return resize_uint8(small[: self.frames], self.height, self.width)

    fallback_is: ClassVar[str] = ""  # what `fallback` does, for warnings
    filter_name: ClassVar[str] = "bicubic"

    def extras(self, batch: int, frame_parts: int) -> Iterator[Extra]:
        """The programs that sampling compiles beside the denoising loop.

        Args:
          batch: how many clips are sampled together.
          frame_parts: into how many parts the mesh splits the frames.
        """
        del batch, frame_parts
        yield from ()


def solver_config(section: ConfigDict, name: str = "PART") -> SolverConfig:
    """The solver that a config's `solver` section describes.

    Raises:
      InputError: if a setting does not exist.
    """
    settings = section.to_dict()
    if "schedule" in settings:
        settings["schedule"] = build(NoiseSchedule, settings["schedule"], f"{name}.solver.schedule")
    return build(SolverConfig, settings, f"{name}.solver")
