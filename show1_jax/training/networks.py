"""Where a training's networks come from, and where it puts what it trained.

Networks are looked for in WORKDIR/checkpoint, where earlier trainings put theirs, then in the
config's checkpoint.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
from etils.epath import Path
from ml_collections import ConfigDict

from show1_jax import stages
from show1_jax.checkpoints.export import export_copy, export_network, export_scheduler
from show1_jax.checkpoints.released import StageFolder, encoder_folder, find_stages
from show1_jax.diffusion.solvers import SolverConfig
from show1_jax.errors import InputError
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE
from show1_jax.parallel import hosts
from show1_jax.paths import as_path
from show1_jax.stages import Part, Stage
from show1_jax.training import random_encoders
from show1_jax.training.data import params_fingerprint

CHECKPOINT = "checkpoint"

# What may differ between a network and the one that it is initialised from.
MAY_DIFFER = (
    "in_channels",
    "temporal",
    "temporal_heads",
    "input_transformer_head_dim",
    "scaling_factor",
)


class Networks:
    """The networks that one part's training reads and writes.

    Attributes:
      target: the checkpoint that the part is exported to.
    """

    def __init__(self, config: ConfigDict, part: Part, workdir: Path):
        """Nothing is read yet.

        Args:
          config: as in `configs/show1.py`.
          part: what is trained.
          workdir: the folder of all runs.
        """
        self._config, self._part, self._workdir = config, part, workdir
        self.target = _target(workdir, type(part))

    def initial(self, init: str) -> tuple[StageFolder, str]:
        """The network to initialise from: a part's, or one in a folder of its own.

        Args:
          init: the name of a part, or a folder with config.json and params/.

        Returns:
          The folder of its stage, and its name there.

        Raises:
          InputError: if it is not there.
        """
        setting = f"train.{self._part.name}.init"
        if init not in stages.parts():
            path = as_path(init)
            folder, name = StageFolder(path.parent), path.name
            if not folder.has(name):
                raise InputError(f"{setting}: {folder.folder / name} has no params/")
            return folder, name
        source = stages.part(init)
        stage, name = source.stored_with(), source.trained
        if not source.in_cascade and init != self._part.name:
            folder = StageFolder(_target(self._workdir, source) / stages.by_name(stage).folder)
            if not folder.has(name):
                raise InputError(
                    f"{setting}={init} needs {folder.folder / name}: train {init} first, or give "
                    'the folder of a network, or "" for random parameters'
                )
            return folder, name
        # Not from what an earlier run here made of itself: the same command starts the same.
        return self._find(stage, name, f"{setting}={init}", init != self._part.name), name

    def frozen(self, name: str, dtype: Any) -> tuple[Any, Any]:
        """A network that the part runs but does not train.

        Returns:
          The module, to compute in `dtype`, and its fp32 parameters.

        Raises:
          InputError: if it is not there.
        """
        folder = self._find(self._part.stored_with(), name, self._part.name)
        module = folder.module(name, dtype)
        return module, folder.params(name, module, jnp.float32)

    def make_encoders(self, captions: Iterable[str]) -> None:
        """Makes random text encoders in WORKDIR/checkpoint, if `config.text.random` asks for them.

        One part's training alone takes those that there are.

        Args:
          captions: whose words they know.

        Raises:
          InputError: like `random_encoders.make`.
        """
        kept = self._config.stage and self._find_encoder() is not None
        if self._config.text.random and not kept:
            random_encoders.make(self._workdir / CHECKPOINT, captions)

    def encoder(self) -> StageFolder:
        """The folder of a stage that has the text encoder of the part; raises InputError."""
        if (found := self._find_encoder()) is None:
            kind = str(self._part.encoder).upper()
            raise InputError(
                f"no {kind} text_encoder/ to read captions with: give --config.checkpoint"
            )
        return found

    def _find_encoder(self) -> StageFolder | None:
        encoder = self._part.encoder
        assert encoder is not None
        for found in self._checkpoints():
            own = [name for name in found if stages.by_name(name).encoder == encoder]
            if any(found[name].has("text_encoder") for name in own):
                return encoder_folder(found, encoder)
        return None

    def export(self, module: UNet | VAE, params: Any, scaled: Callable[[Any, Any], VAE]) -> None:
        """Puts what was trained into the checkpoint that `sample.py` reads, with all it needs.

        Args:
          module: the network.
          params: its parameters.
          scaled: makes an autoencoder and its parameters into one whose latents have variance 1.

        Raises:
          InputError: if it cannot be written.
        """
        if isinstance(module, VAE):
            self._export_vae(module, params, scaled)
            return
        stage, target = self._part, self.target
        assert isinstance(stage, Stage)
        name = stage.stored_with()
        folder = StageFolder(target / stage.folder)
        # Written anew, the same parameters would look like others to `sample.py`.
        if (
            not _holds(folder, "unet", params)
            or folder.module("unet", jnp.float32).config != module.config
        ):
            export_network(target, name, module, params)
        if not stage.in_cascade:
            return  # to initialise from, not to sample from
        export_scheduler(target, name, "scheduler", stage.solver)
        if stage.noise_schedule is not None:
            noising = SolverConfig("ddpm", stage.noise_schedule)
            export_scheduler(target, name, "image_noising_scheduler", noising)
        if stage.encoder is not None:
            folder = self.encoder()
            if folder.folder.parent != target:  # else another stage there has it: T5-XXL is large
                for copied in ("text_encoder", "tokenizer"):
                    export_copy(target, name, folder.folder / copied)
        for other in stage.networks:
            if other != stage.trained:
                export_copy(target, name, self._find(name, other, name).folder / other)

    def _export_vae(self, vae: VAE, params: Any, scaled: Callable[[Any, Any], VAE]) -> None:
        """Puts the autoencoder there, unless it is there: its stage is trained on that one."""
        stage = stages.by_name(self._part.stored_with())
        folder = StageFolder(self.target / stage.folder)
        if _holds(folder, "vae", params):
            return
        if folder.has("vae") and folder.has("unet"):
            hosts.say(
                f"{stage.name} in {self.target} was trained on another autoencoder: train it again"
            )
        export_network(self.target, stage.name, scaled(vae, params), params)

    def _find(self, stage: str, name: str, wanted: str, own: bool = True) -> StageFolder:
        """The folder of a stage that has a network: trained here, or in the config's checkpoint."""
        for found in self._checkpoints(own):
            if stage in found and found[stage].has(name):
                return found[stage]
        raise InputError(
            f"{wanted} needs {stage}/{name}, which is neither in {self._workdir / CHECKPOINT} nor "
            "in the config's checkpoint: train it first, or give --config.checkpoint"
        )

    def _checkpoints(self, own: bool = True) -> Iterator[dict[str, StageFolder]]:
        trained = self._workdir / CHECKPOINT
        if own and any(trained.glob("*/model_index.json")):
            yield find_stages(trained)
        if self._config.get("checkpoint"):
            yield find_stages(as_path(self._config.checkpoint))


def check_kinship(source: Any, module: UNet | VAE, where: str) -> None:
    """Raises InputError if parameters mean something else in a network, whatever their shapes."""
    ours, theirs = (dataclasses.asdict(each.config) for each in (module, source))
    different = [
        f"{key} is {theirs.get(key)} there and {value} here"
        for key, value in ours.items()
        if key not in MAY_DIFFER and theirs.get(key) != value
    ]
    if different:
        raise InputError(f"{where} cannot initialise this network: {'; '.join(different)}")


def _target(workdir: Path, part: type[Part]) -> Path:
    """Where a part is exported: a part that is not sampled makes a checkpoint of its own."""
    return workdir / CHECKPOINT if part.in_cascade else workdir / part.name / CHECKPOINT


def _holds(folder: StageFolder, name: str, params: Any) -> bool:
    """Whether a network is in a folder with these parameters."""
    if not folder.has(name):
        return False
    there = folder.params(name, folder.module(name, jnp.float32), jnp.float32)
    return params_fingerprint(there) == params_fingerprint(params)
