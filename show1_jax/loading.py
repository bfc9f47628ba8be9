"""From a config and checkpoints to stages that are ready to run; no weight is read."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from absl import logging
from etils.epath import Path
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from show1_jax import stages as known_stages
from show1_jax.adapters.files import Adapter, load_adapter, parse_adapter
from show1_jax.checkpoints.networks import abstract_params
from show1_jax.checkpoints.released import StageFolder, find_stages
from show1_jax.diffusion.solvers import make_solver
from show1_jax.errors import InputError
from show1_jax.models.unet import UNet
from show1_jax.parallel.mesh import low_memory, sampling_dtype
from show1_jax.paths import Checkpoint, as_path, as_paths
from show1_jax.stages import Stage, inversion
from show1_jax.stages.sampling import Sampler


@dataclasses.dataclass
class Loaded:
    """Stages that are ready to run.

    Attributes:
      checkpoints: the folders of the checkpoints.
      folders: the stages that these have, by name.
      dtype: what networks compute in.
      low_memory: whether sampling takes as little memory as it can.
      known: all stages as the config describes them, by name.
      stages: those to run, by name, with the networks that they run besides their denoisers.
      samplers: by stage, network and solver.
      adapters: by stage, what changes its denoiser, with weights.
      noise: what one stage starts from in place of earlier results; None for nothing.
      noise_file: where that was read; "" for nothing.
    """

    checkpoints: list[Path]
    folders: dict[str, StageFolder]
    dtype: np.dtype
    low_memory: bool
    known: dict[str, Stage]
    stages: dict[str, Stage]
    samplers: dict[str, Sampler]
    adapters: dict[str, list[tuple[Adapter, float]]]
    noise: inversion.Noise | None
    noise_file: str

    def noise_of(self, stage: str) -> inversion.Noise | None:
        """The noise of a clip that the stage starts from; None if it is not given one."""
        return self.noise if self.noise is not None and self.noise.stage == stage else None

    def inputs(self, stage: str) -> tuple[str, ...]:
        """The stages whose results it starts from."""
        return self.known[stage].needs if self.noise_of(stage) is None else ()


def load_stages(
    config: ConfigDict,
    checkpoint: Checkpoint,
    stages: Sequence[str] | None = None,
    noise: inversion.Noise | None = None,
) -> Loaded:
    """Reads every configuration and checks that sizes fit.

    Args:
      config: as in `configs/show1.py`.
      checkpoint: a converted checkpoint, or several, of which later ones override the stages
        of earlier ones.
      stages: the stages to run; None for all that the checkpoint has.
      noise: what a stage starts from; None for what the config names.

    Raises:
      InputError: if a stage is unknown or not there, a size does not fit, or there
        are adapters for a stage that is not run.
    """
    checkpoints = as_paths(checkpoint)
    noise_file = config.from_noise if noise is None else ""
    if noise_file:
        noise = inversion.load_noise(as_path(noise_file))
    loaded = Loaded(
        checkpoints,
        find_stages(*checkpoints),
        sampling_dtype(config.dtype),
        low_memory(config.memory),
        known_stages.build(config),
        {},
        {},
        {},
        noise,
        noise_file,
    )
    for name in _choose(loaded, stages):
        loaded.stages[name] = _stage(loaded, name)
    if noise is not None:
        _check_noise(loaded, noise)
    for name, stage in loaded.stages.items():
        loaded.samplers[name] = _sampler(loaded, stage)
        loaded.adapters[name] = _adapters(loaded, stage)
    for name, stage in loaded.stages.items():
        _check_size(stage, loaded.samplers[name].unet)
        if loaded.noise_of(name) is None:
            stage.check(loaded.samplers[name].solver)
    return loaded


def _choose(loaded: Loaded, chosen: Sequence[str] | None) -> list[str]:
    """The names of the stages to run, in order."""
    names, folders, noise = known_stages.names(), loaded.folders, loaded.noise
    if chosen is None:
        # What comes before the stage that is given noise has no part in the result.
        useful = names if noise is None else names[names.index(noise.stage) :]
        there = [name for name in useful if name in folders]
        # Training makes other networks of a stage long before its denoiser.
        there = [name for name in there if folders[name].has("unet")] or there
        missing = [name for name in useful if name not in there]
        _check_gaps(folders, there, missing)
        if missing:
            logging.warning("The checkpoint has no %s: left out.", ", ".join(missing))
        chosen = there
    for name in chosen:
        known_stages.by_name(name)
        if name not in folders:
            raise InputError(f"the checkpoint has no {name}, only {', '.join(folders)}")
    for name, stage in loaded.known.items():
        if stage.adapters and name not in chosen:
            raise InputError(f"adapters are for the {name}, which are not among the stages to run")
    return [name for name in names if name in chosen]


def _check_gaps(
    folders: Mapping[str, StageFolder], there: Sequence[str], missing: Sequence[str]
) -> None:
    """Raises InputError if a stage's folder is there, but not its denoiser, and later ones are.

    The last stages may be missing: they are trained last.
    """
    names = known_stages.names()
    before = names[: names.index(there[-1])] if there else ()
    for name in missing:
        if name in before and name in folders:
            raise InputError(
                f"{folders[name].folder / 'unet' / 'params'} is missing, though {name} "
                f"comes before {there[-1]}: put it there, or name the --stages to run"
            )


def _stage(loaded: Loaded, name: str) -> Stage:
    """A stage with what the checkpoint says of it, and its other networks."""
    stage, folder = loaded.known[name], loaded.folders[name]
    networks: dict[str, nn.Module] = {}
    for other in stage.networks:
        if other != "unet":
            module: Any = folder.module(other, loaded.dtype)
            warn_of_differences(name, stage.section.get(other), module.config)
            networks[other] = module
    if stage.noise_schedule is not None:
        found = folder.noise_schedule()
        warn_of_differences(name, stage.section["noise_schedule"], found)
        stage = dataclasses.replace(stage, noise_schedule=found)
    return stage.with_networks(networks)


def _sampler(loaded: Loaded, stage: Stage) -> Sampler:
    folder = loaded.folders[stage.name]
    unet = folder.module("unet", loaded.dtype)
    assert isinstance(unet, UNet)
    if not unet.config.temporal and not stage.image:
        raise InputError(
            f"{folder.folder / 'unet'} is an image network, which makes no clips: {stage.name} "
            "can be trained from it (init)"
        )
    reading: Any = stage.head_reading
    if reading not in ("released", "width", "number"):
        raise InputError(f"{stage.name}.head_reading is {reading!r}, not released, width or number")
    if reading != "released":
        heads = dataclasses.replace(unet.config, spatial_heads=reading, temporal_heads=reading)
        unet = unet.clone(config=heads)
    warn_of_differences(stage.name, stage.section.get("unet"), unet.config)
    config = folder.solver()
    warn_of_differences(stage.name, stage.section.get("solver"), config)
    solver, guided = make_solver(config, stage.steps), stage.guidance > 1
    sampler = Sampler(unet, solver, stage.dropout, guided, loaded.low_memory)
    noise = loaded.noise_of(stage.name)
    return sampler if noise is None else inversion.from_noise(sampler, noise.steps)


def _adapters(loaded: Loaded, stage: Stage) -> list[tuple[Adapter, float]]:
    parsed = [parse_adapter(text) for text in stage.adapters]
    # Tracing a large network takes a second: only where there are adapters.
    shapes = abstract_params(loaded.samplers[stage.name].unet) if parsed else {}
    return [(load_adapter(path, shapes), weight) for path, weight in parsed]


def _check_noise(loaded: Loaded, noise: inversion.Noise) -> None:
    file, name = loaded.noise_file or "the given noise", noise.stage
    if name not in loaded.stages:
        raise InputError(f"{file} is noise of {name}, which is not among the stages to run")
    shape = loaded.stages[name].pieces_shape
    if noise.noise.shape != shape:
        raise InputError(
            f"{file} is noise of {name} at other sizes than the config's: its parts, frames, "
            f"height, width and channels are {noise.noise.shape}, not {shape}"
        )


def _check_size(stage: Stage, unet: UNet) -> None:
    multiple = stage.size_multiple(unet)
    for side in ("height", "width"):
        size = getattr(stage, side)
        if size < 1 or size % multiple:
            raise InputError(
                f"{stage.size_of or stage.name}.{side} is {size}, but the {stage.name} denoiser "
                f"needs a multiple of {multiple}"
            )


def warn_of_differences(name: str, expected: Any, found: Any) -> None:
    """Says where a checkpoint's settings differ from the config's.

    Args:
      name: what to call the settings' owner.
      expected: the config's section; None for none.
      found: a dataclass of the checkpoint's settings.
    """
    if expected is None:
        return
    plain = expected.to_dict() if isinstance(expected, ConfigDict) else dict(expected)
    actual = flatten_dict(dataclasses.asdict(found), sep=".")
    different = [
        f"{key} is {actual.get(key)}, not {value}"
        for key, value in flatten_dict(plain, sep=".").items()
        if actual.get(key) != value
    ]
    if different:
        logging.warning(
            "The checkpoint's %s differs from the config: %s.", name, "; ".join(different)
        )
