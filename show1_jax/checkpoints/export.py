"""Writes trained networks in the released layout, with Orbax parameters, ready for sampling."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from etils.epath import Path

from show1_jax import stages
from show1_jax.checkpoints.layout import PARAMS, REFERENCE, params_folder
from show1_jax.checkpoints.network_config import clip_json, t5_json, vae_json
from show1_jax.checkpoints.scheduler_config import scheduler_json
from show1_jax.checkpoints.store import discard, save_params
from show1_jax.checkpoints.unet_config import unet_json
from show1_jax.diffusion.solvers import SolverConfig
from show1_jax.errors import InputError
from show1_jax.files import copy_folder, exchange, move, write_whole
from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import T5Config, T5Encoder
from show1_jax.models.unet import UNet
from show1_jax.models.vae import VAE

INDEX = "model_index.json"

# Library of each part's class, as in released indices.
_CLASSES = {
    "T5EncoderModel": "transformers",
    "CLIPTextModel": "transformers",
    "T5Tokenizer": "transformers",
    "CLIPTokenizer": "transformers",
    "UNet3DConditionModel": "showone.models.unet_3d_condition",
}


def network_json(module: UNet | VAE) -> dict[str, Any]:
    """Returns the `config.json` of a network.

    Raises:
      InputError: if no PyTorch class can express the network.
    """
    return vae_json(module.config) if isinstance(module, VAE) else unet_json(module.config)


def export_network(checkpoint: Path, stage: str, module: UNet | VAE, params: Any) -> None:
    """Writes a network into a stage's folder of a checkpoint, and replaces an older one.

    Args:
      checkpoint: the folder of all stages; made if it is not there.
      stage: which stage.
      module: the network.
      params: its parameters.

    Raises:
      InputError: if it cannot be written, or no PyTorch class can express the network.
    """
    name, config = "vae" if isinstance(module, VAE) else "unet", network_json(module)

    def write(folder: Path) -> None:
        _write_json(folder / "config.json", config)
        save_params(folder / PARAMS, params)

    _put(checkpoint, stage, name, write)


def export_text_encoder(
    checkpoint: Path,
    stage: str,
    module: T5Encoder | CLIPText,
    params: Any,
    tokenizer: Mapping[str, bytes],
) -> None:
    """Writes a text encoder and its tokenizer's files into a stage's folder of a checkpoint."""
    own = module.config
    config = t5_json(own) if isinstance(own, T5Config) else clip_json(own)

    def write(folder: Path) -> None:
        _write_json(folder / "config.json", config)
        save_params(folder / PARAMS, params)

    def write_tokenizer(folder: Path) -> None:
        for name, content in tokenizer.items():
            (folder / name).write_bytes(content)

    _put(checkpoint, stage, "text_encoder", write)
    _put(checkpoint, stage, "tokenizer", write_tokenizer)


def export_scheduler(checkpoint: Path, stage: str, name: str, solver: SolverConfig) -> None:
    """Writes `name`/scheduler_config.json into a stage's folder of a checkpoint."""
    content = scheduler_json(solver)
    _put(checkpoint, stage, name, lambda f: _write_json(f / "scheduler_config.json", content))


def export_copy(checkpoint: Path, stage: str, source: Path) -> None:
    """Copies a part, such as the text encoder, unless it exists already.

    Includes parameters that the part shares with another network.
    """
    if (checkpoint / stages.by_name(stage).folder / source.name).is_dir():
        return

    def write(folder: Path) -> None:
        copy_folder(source, folder, without=[REFERENCE])
        if (params := params_folder(source)).parent != source:
            copy_folder(params, folder / PARAMS)

    _put(checkpoint, stage, source.name, write)


def _put(checkpoint: Path, stage: str, name: str, write: Any) -> None:
    """Writes a part beside the checkpoint, renames it into place, and adds it to the index.

    If this is interrupted at any point, every folder in the checkpoint has an index.
    """
    own = stages.by_name(stage)
    folder, kind = own.folder, own.pipeline
    pipeline = checkpoint / folder
    work = checkpoint.absolute().parent / f".{name}-{secrets.token_hex(4)}"
    try:
        checkpoint.mkdir(parents=True, exist_ok=True)
        try:
            (work / name).mkdir(parents=True)
            write(work / name)
            if not pipeline.exists():
                (work / folder).mkdir()
                _write_json(work / folder / INDEX, _index(work / folder, kind))
                move(work / folder, pipeline)
            exchange(work / name, pipeline / name, work / "old")
        finally:
            discard(work)
        _write_json(pipeline / INDEX, _index(pipeline, kind))
    except OSError as error:
        raise InputError(f"{pipeline / name} cannot be written: {error.strerror}") from None


def _index(pipeline: Path, kind: str) -> dict[str, Any]:
    """Returns the `model_index.json` for the contents of a pipeline's folder."""
    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": "0.19.3"}
    found = pipeline.iterdir() if pipeline.is_dir() else ()
    for folder in sorted(path for path in found if path.is_dir()):
        if part := _class_of(folder):
            index[folder.name] = [_CLASSES.get(part, "diffusers"), part]
    return index


def _class_of(folder: Path) -> str | None:
    for name in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text())
            kind = found.get("_class_name") or found.get("tokenizer_class")
            architectures = found.get("architectures") or [None]
            return kind or architectures[0] or _TEXT.get(found.get("model_type"))
    return None


_TEXT = {"t5": "T5EncoderModel", "clip_text_model": "CLIPTextModel"}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
