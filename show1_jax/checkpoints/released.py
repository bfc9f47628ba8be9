"""A converted checkpoint as the cascade sees it: one folder for each stage."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils.epath import Path
from jax.typing import DTypeLike

from show1_jax import stages
from show1_jax.checkpoints.layout import PARAMS, has_params, params_folder
from show1_jax.checkpoints.networks import abstract_params, network, read_json
from show1_jax.checkpoints.pipelines import find_pipelines
from show1_jax.checkpoints.scheduler_config import solver_config
from show1_jax.checkpoints.store import StoredParams
from show1_jax.diffusion.schedule import NoiseSchedule
from show1_jax.diffusion.solvers import SolverConfig
from show1_jax.errors import InputError
from show1_jax.files import files_in, size_of


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """One stage's networks and settings, read when asked for."""

    folder: Path

    def has(self, name: str) -> bool:
        """Whether the network `name` is here with its weights, or refers to another's."""
        return has_params(self.folder / name)

    def module(self, name: str, dtype: DTypeLike) -> nn.Module:
        """Builds a network as its `config.json` says, to compute in `dtype`.

        Raises:
          InputError: if its configuration or its weights are missing.
        """
        path = self.folder / name
        if not self.has(name):
            hint = (
                "; this looks like PyTorch: run python -m show1_jax.convert first"
                if (path / "config.json").is_file()
                else ""
            )
            raise InputError(f"{path} has no {PARAMS}/{hint}")
        return network(read_json(path / "config.json"), str(path / "config.json"), dtype).module

    def params(self, name: str, module: nn.Module, dtype: DTypeLike) -> Any:
        """Restores a network's parameters as `sampling_params` says.

        Raises:
          InputError: if they cannot be restored or do not fit the network.
        """
        return self.stored(name, module, dtype).read()

    def total_size(self) -> int:
        """How many bytes the parameters of all networks here have on disk."""
        return sum(self.size(path.parent.name) for path in self.folder.glob(f"*/{PARAMS}"))

    def size(self, name: str) -> int:
        """How many bytes a network's parameters have on disk."""
        files = files_in(params_folder(self.folder / name))
        return sum(size_of(path) for path in files)

    def stored(
        self, name: str, module: nn.Module, dtype: DTypeLike, check: bool = True
    ) -> StoredParams:
        """A network's parameters, not read yet, as `sampling_params` says.

        Args:
          name: of the network.
          module: the network.
          dtype: of its parameters in memory.
          check: as of `StoredParams`.

        Raises:
          InputError: if they do not fit the network, or are damaged.
        """
        wanted = sampling_params(module, dtype)
        return StoredParams(params_folder(self.folder / name), wanted, check)

    def solver(self) -> SolverConfig:
        """The solver that `scheduler/scheduler_config.json` describes."""
        return self._scheduler("scheduler")

    def noise_schedule(self) -> NoiseSchedule:
        """The schedule of the noise on the condition, of stages that have such."""
        return self._scheduler("image_noising_scheduler").schedule

    def _scheduler(self, name: str) -> SolverConfig:
        path = self.folder / name / "scheduler_config.json"
        return solver_config(read_json(path), str(path))


def sampling_params(module: nn.Module, dtype: DTypeLike) -> Any:
    """Shapes and dtypes of a network's parameters in memory: `dtype`, but for vectors.

    Vectors (norms and biases) stay in fp32: they are few, and norms compute in it.
    """
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype if leaf.ndim > 1 else jnp.float32),
        abstract_params(module),
    )


def find_stages(*checkpoints: Path) -> dict[str, StageFolder]:
    """The stages that checkpoints have, by name.

    Args:
      *checkpoints: later ones override the stages of earlier ones.

    Raises:
      InputError: if one is no checkpoint, has a stage twice, or would replace a stage that has a
        denoiser by one without.
    """
    found: dict[str, StageFolder] = {}
    for checkpoint in checkpoints:
        own = _stages_of(checkpoint)
        for name, folder in own.items():
            if name in found and found[name].has("unet") and not folder.has("unet"):
                raise InputError(
                    f"{folder.folder} has no unet/, and would replace {found[name].folder}, which "
                    f"has one: train {name} too, or leave this checkpoint out"
                )
        found |= own
    return found


def _stages_of(checkpoint: Path) -> dict[str, StageFolder]:
    found: dict[str, StageFolder] = {}
    by_class = {stage.pipeline: stage.name for stage in stages.STAGES}
    for folder in find_pipelines(checkpoint):
        kind = read_json(folder / "model_index.json").get("_class_name")
        stage = by_class.get(str(kind))
        if stage is None:
            raise InputError(f"{folder / 'model_index.json'}: {kind} is no stage of the cascade")
        if stage in found:
            raise InputError(f"{found[stage].folder} and {folder} are both the stage {stage}")
        found[stage] = StageFolder(folder)
    return found


def encoder_folder(folders: Mapping[str, StageFolder], encoder: str) -> StageFolder:
    """The first stage's folder that has a text encoder; all stages that need it use the same.

    Args:
      folders: the stages of a checkpoint; see `find_stages`.
      encoder: "t5" or "clip".

    Raises:
      InputError: if none has it.
    """
    for stage in stages.STAGES:
        own = folders.get(stage.name)
        if own is not None and stage.encoder == encoder and own.has("text_encoder"):
            return own
    raise InputError(f"no stage of the checkpoint has a text_encoder/ of {encoder.upper()}")
