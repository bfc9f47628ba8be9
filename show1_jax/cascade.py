"""The door from Python: `load` a checkpoint, then call it with prompts.

cascade = show1_jax.load()
videos = cascade(["a small red circle moving left on a black background"], seeds=[0, 1])
videos[0].save("circle.mp4")
"""

import contextlib
import copy
import dataclasses
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils.epath import Path
from ml_collections import ConfigDict, FrozenConfigDict

from show1_jax import stages
from show1_jax.arguments import Number, PerStage, frames_of, items_of, per_stage, whole
from show1_jax.checkpoints.released import find_stages
from show1_jax.compilation import use_compilation_cache
from show1_jax.config_files import checked_config, load_config
from show1_jax.engine import Engine
from show1_jax.errors import InputError
from show1_jax.invert import find_noise, inverting_engine
from show1_jax.memory import free_memory, return_freed_memory
from show1_jax.parallel.mesh import sampling_dtype
from show1_jax.paths import Checkpoint, as_paths
from show1_jax.progress import Progress
from show1_jax.stages.inversion import Noise
from show1_jax.stages.results import Memory, checked
from show1_jax.video import Video
from show1_jax.weights import Weights

KEPT_SHARE = 0.5  # of free memory that weights may take to stay there


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What one stage made of one item.

    Attributes:
      item: which of the videos it belongs to: every seed of every prompt, prompt by prompt.
      stage: which stage.
      prompt: the item's.
      seed: the item's.
      frames: fp32 `(frames, height, width, 3)`, about [-1, 1]; of a stage that makes one frame
        `(height, width, 3)`.
    """

    item: int
    stage: str
    prompt: str
    seed: int
    frames: np.ndarray


class Cascade:
    """A checkpoint that makes videos from prompts; see `load`.

    Attributes:
      config: as in `configs/show1.py`.
      checkpoints: the folders of the checkpoints.
      keep_weights: whether networks stay in memory between calls.
    """

    def __init__(
        self,
        config: ConfigDict,
        checkpoint: Checkpoint,
        *,
        chosen: Sequence[str] | None = None,
        devices: Sequence[jax.Device] | None = None,
        keep_weights: bool | None = None,
    ):
        """Checks every setting; no weight is read. Use `load`.

        Args:
          config: as in `configs/show1.py`.
          checkpoint: a converted checkpoint, or several; later ones override earlier ones' stages.
          chosen: the stages to run; None for all that the checkpoint has.
          devices: to lay out as `config.mesh` says; None for all.
          keep_weights: whether networks stay in memory between calls; None for whether they take
            less than half of the memory that is free.

        Raises:
          InputError: if a setting is wrong, or a network is missing.
        """
        self.config, self.checkpoints = FrozenConfigDict(config), as_paths(checkpoint)
        self._config, self._devices = copy.deepcopy(config), devices
        folders = find_stages(*self.checkpoints)
        dtype = sampling_dtype(config.dtype)
        if keep_weights is None:
            run = [folder for name, folder in folders.items() if name in (chosen or folders)]
            size = sum(folder.total_size() for folder in run)
            # Released weights are of two bytes a number.
            keep_weights = size * dtype.itemsize / 2 < KEPT_SHARE * free_memory()
        self.keep_weights = keep_weights
        self._weights = Weights(folders, dtype, keep=keep_weights)
        self._engine = self._engine_of(config, chosen)

    @property
    def stages(self) -> list[str]:
        """The names of the stages that run, in order."""
        return list(self._engine.stages)

    def __call__(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        *,
        steps: PerStage = None,
        guidance: PerStage = None,
        stop_after: str | None = None,
        start: Mapping[str, Any] | None = None,
        adapters: str | Path | Sequence[str | Path] = (),
        noise: Noise | None = None,
        progress: bool = True,
    ) -> list[Video]:
        """Makes videos: every seed of every prompt, prompt by prompt.

        Args:
          prompts: what to show; one, or several.
          seeds: random seeds, 0 to 2**32 - 1; each makes a video of every prompt.
          steps: solver steps, of all stages or by stage.
          guidance: guidance scales, of all stages or by stage.
          stop_after: the last stage to run; None for all.
          start: `{stage: frames}`: what a stage starts from, in place of what earlier stages
            would make: uint8, or floats in [-1, 1], `(frames, height, width, 3)` for all videos,
            or one such array for each.
          adapters: files from `train.py` or PEFT, FILE or FILE=WEIGHT, for the first stage.
          noise: of a clip, from `invert`; its stage starts from it, and is not guided unless
            `guidance` says so.
          progress: whether bars are shown on stderr.

        Returns:
          One video for each seed of each prompt.

        Raises:
          InputError: if anything given is wrong, or memory is short.
        """
        items = items_of(prompts, seeds)
        asked = (steps, guidance, stop_after, start, adapters, noise)
        found: list[dict[str, np.ndarray]] = [{} for _ in items]
        for result in self._stream(items, *self._prepared(items, *asked), progress):
            found[result.item][result.stage] = result.frames
        return [
            Video(prompt, seed, self._fps(made), made)
            for (prompt, seed), made in zip(items, found, strict=True)
        ]

    def stream(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        *,
        steps: PerStage = None,
        guidance: PerStage = None,
        stop_after: str | None = None,
        start: Mapping[str, Any] | None = None,
        adapters: str | Path | Sequence[str | Path] = (),
        noise: Noise | None = None,
        progress: bool = True,
    ) -> Iterator[Result]:
        """Like calling the cascade, but yields each stage's result as soon as it is made.

        All videos pass a stage before the next one begins. Arguments and errors are those of a
        call; what is wrong with the arguments is told at once.
        """
        items = items_of(prompts, seeds)
        prepared = self._prepared(items, steps, guidance, stop_after, start, adapters, noise)
        return self._stream(items, *prepared, progress)

    def _stream(
        self, items: Sequence[tuple[str, int]], engine: Engine, results: Memory, progress: bool
    ) -> Iterator[Result]:
        prompts, seeds = [prompt for prompt, _ in items], [seed for _, seed in items]
        with contextlib.closing(Progress(progress)) as bars:
            for made in engine.stream(prompts, seeds, results, bars.update):
                yield Result(made.item, made.stage, *items[made.item], made.frames)

    def _prepared(
        self,
        items: Sequence[tuple[str, int]],
        steps: PerStage,
        guidance: PerStage,
        stop_after: str | None,
        start: Mapping[str, Any] | None,
        adapters: str | Path | Sequence[str | Path],
        noise: Noise | None,
    ) -> tuple[Engine, Memory]:
        """What runs the stages that a call asks for, and the results that they start from."""
        changes = per_stage("steps", steps), per_stage("guidance", guidance)
        if noise is not None:
            if noise.stage in changes[0] and not isinstance(steps, numbers.Number):
                raise InputError(f"the noise decides the steps of {noise.stage}: give others'")
            if len({seed for _, seed in items}) > 1:
                raise InputError("noise is the same for all seeds: give one")
            changes[0].pop(noise.stage, None)
            changes[1].setdefault(noise.stage, 1.0)
        config = self._changed(*changes, {}, adapters)
        chosen, given = self._between(stop_after, start, noise)
        engine = self._engine
        if config is not self._config or chosen != self.stages or noise is not None:
            engine = self._engine_of(config, chosen, noise)
        results = Memory()
        for name, frames in given.items():
            shape = engine.loaded.known[name].shape
            for item, own in enumerate(frames_of(frames, len(items), shape, name)):
                results.put(item, name, checked(own, name, shape, "give the sizes of the config"))
        for name in engine.stages:
            for needed in engine.loaded.inputs(name):
                if needed not in engine.stages and needed not in given:
                    raise InputError(
                        f"{name} starts from the result of {needed}, which is not run here: give "
                        f"start={{{name!r}: frames}}"
                    )
        return engine, results

    def invert(
        self,
        clip: str | Path,
        prompt: str = "",
        *,
        stage: str | None = None,
        steps: int = 50,
        seed: int = 0,
        adapters: str | Path | Sequence[str | Path] = (),
        progress: bool = True,
    ) -> Noise:
        """The noise that a stage makes into a clip (DDIM inversion, arXiv 2010.02502).

        `cascade(prompts, noise=noise)` then shows other things that move in the same way.

        Args:
          clip: a video; for a stage that makes one frame, a picture may do.
          prompt: what the clip shows.
          stage: which stage; None for the first.
          steps: solver steps.
          seed: decides the noise of an upscaler's condition.
          adapters: as in a call.
          progress: whether bars are shown on stderr.

        Raises:
          InputError: if anything given is wrong, or memory is short.
        """
        name = stage or self.stages[0]
        stages.by_name(name)
        config = self._changed({name: whole("steps", name, steps)}, {}, {}, adapters)
        mesh = self._engine.mesh
        # Networks that are in memory are spread over the mesh, which one device cannot use.
        weights = self._weights if mesh.size == 1 else None
        engine = inverting_engine(config, self.checkpoints, name, list(mesh.local_devices), weights)
        with contextlib.closing(Progress(progress)) as bars:
            return find_noise(engine, clip, prompt, seed, bars.update)[0]

    def engine(
        self,
        chosen: Sequence[str] | None = None,
        *,
        steps: PerStage = None,
        guidance: PerStage = None,
        negative_prompts: Mapping[str, str] | None = None,
        adapters: str | Path | Sequence[str | Path] = (),
        batch_size: int | None = None,
    ) -> Engine:
        """What runs stages, with the networks that are in memory, for programs that keep results.

        Args:
          chosen: the stages to run; None for all.
          steps: as in a call.
          guidance: as in a call.
          negative_prompts: by stage, what guidance leads away from; the config's for the others.
          adapters: as in a call.
          batch_size: videos sampled together; None for the config's.

        Raises:
          InputError: if anything given is wrong.
        """
        changes = per_stage("steps", steps), per_stage("guidance", guidance)
        config = self._changed(*changes, negative_prompts or {}, adapters)
        if batch_size is not None:
            config = copy.deepcopy(config)
            config.batch_size = batch_size
        return self._engine_of(config, self.stages if chosen is None else chosen)

    def _engine_of(
        self, config: ConfigDict, chosen: Sequence[str] | None, noise: Noise | None = None
    ) -> Engine:
        return Engine(
            config, self.checkpoints, chosen, self._devices, weights=self._weights, noise=noise
        )

    def _changed(
        self,
        steps: Mapping[str, Number],
        guidance: Mapping[str, Number],
        negative_prompts: Mapping[str, str],
        adapters: str | Path | Sequence[str | Path],
    ) -> ConfigDict:
        """The config with what one call changes; itself if that is nothing."""
        several = [adapters] if isinstance(adapters, str | Path) else list(adapters)
        if not steps and not guidance and not negative_prompts and not several:
            return self._config
        config = copy.deepcopy(self._config)
        changes = {"steps": steps, "guidance": guidance, "negative_prompt": negative_prompts}
        for name, values in changes.items():
            for stage, value in values.items():
                with config[stage].unlocked():  # few have a negative prompt
                    config[stage][name] = value
        if several:
            config[stages.STAGES[0].name].adapters = tuple(str(each) for each in several)
        return config

    def _between(
        self, stop_after: str | None, start: Mapping[str, Any] | None, noise: Noise | None
    ) -> tuple[list[str], dict[str, Any]]:
        """The stages to run, and the results that are given in place of earlier stages'."""
        names = stages.names()
        given: dict[str, Any] = {}
        for name, frames in (start or {}).items():
            stage = stages.by_name(name)
            if not stage.needs:
                raise InputError(f"{name} starts from the prompt alone: start is for later stages")
            own = frames if isinstance(frames, Mapping) else {stage.needs[0]: frames}
            for result, each in own.items():
                if result not in (*stage.needs, *stage.uses):
                    raise InputError(f"{name} does not start from the result of {result}")
                if result in given:
                    raise InputError(f"start gives the result of {result} twice")
                given[result] = each
        first = min((names.index(name) for name in start or {}), default=0)
        if noise is not None:
            first = max(first, names.index(noise.stage))
        if stop_after is not None:
            stages.by_name(stop_after)
        last = len(names) - 1 if stop_after is None else names.index(stop_after)
        # An optional stage whose result is not given runs with the stage that uses it.
        chosen = [
            name for name in self.stages if first <= names.index(name) <= last and name not in given
        ]
        for name in self.stages:
            used = any(name in stages.by_name(later).uses for later in chosen)
            if used and name not in given and name not in chosen:
                chosen.append(name)
        chosen.sort(key=names.index)
        if not chosen:
            raise InputError("start and stop_after leave no stage to run")
        for result in given:
            if not any(
                result in (*stages.by_name(n).needs, *stages.by_name(n).uses) for n in chosen
            ):
                raise InputError(f"no stage that runs starts from the result of {result}")
        return chosen, given

    def _fps(self, made: Mapping[str, np.ndarray]) -> float:
        known = self._engine.loaded.known
        clips = [name for name, frames in made.items() if frames.ndim == 4] or list(made)
        return known[clips[-1]].fps


def load(
    checkpoint: Checkpoint | None = None,
    config: str | Path | ConfigDict | None = None,
    *,
    stages: Sequence[str] | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
    devices: Sequence[jax.Device] | None = None,
    keep_weights: bool | None = None,
) -> Cascade:
    """Loads a cascade; weights are read when they are first needed.

    Args:
      checkpoint: a converted checkpoint, or several, of which later ones override the stages of
        earlier ones; None for the embedded one.
      config: "tiny" (the default), "show1", a file (FILE or FILE:ARGUMENT), or a `ConfigDict`.
      stages: the stages to run; None for all that the checkpoint has.
      batch_size: videos sampled together; None for the config's.
      dtype: that networks compute in, "float32", "bfloat16", "float16" (GPUs) or "auto"; None for
        the config's.
      devices: to lay out as the config's `mesh` says; None for all.
      keep_weights: whether networks stay in memory between calls; None for whether they take less
        than half of the memory that is free.

    Raises:
      InputError: if the config or a checkpoint is wrong or missing.
    """
    use_compilation_cache()
    return_freed_memory()
    if isinstance(config, ConfigDict):
        own = checked_config(config)
    else:
        own, _ = load_config(str(config or "tiny"))
    try:
        if batch_size is not None:
            own.batch_size = batch_size
        if dtype is not None:
            own.dtype = dtype
    except TypeError as error:
        raise InputError(f"batch_size is a whole number and dtype a text: {error}") from None
    if isinstance(stages, str):
        raise InputError(f"stages is the text {stages!r}: give a list")
    where = checkpoint or own.get("checkpoint")
    if not where:
        raise InputError("give a checkpoint: this config comes without one")
    return Cascade(own, where, chosen=stages, devices=devices, keep_weights=keep_weights)
