"""Whole released folders: which networks they hold, and what else."""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from show1_jax.checkpoints import torch_files
from show1_jax.checkpoints.layout import ORIGIN, PARAMS, REFERENCE, has_params, params_folder
from show1_jax.checkpoints.networks import Network, network, read_json
from show1_jax.checkpoints.scheduler_config import solver_config
from show1_jax.checkpoints.torch_params import match
from show1_jax.errors import InputError

ENCODERS = {"T5EncoderModel", "CLIPTextModel"}
NETWORKS = {"UNet3DConditionModel", "UNet2DConditionModel", "AutoencoderKL"} | ENCODERS
SCHEDULERS = {"DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"}
COPIED = SCHEDULERS | {"T5Tokenizer", "CLIPTokenizer", "CLIPImageProcessor"}
# DeepFloyd's watermark and safety networks are no part of the cascade.
LEFT_OUT = {"IFSafetyChecker", "IFWatermarker"}

WEIGHT_SUFFIXES = {".bin", ".safetensors", ".msgpack", ".h5", ".ckpt", ".onnx", ".pt"}


def find_pipelines(folder: Path) -> list[Path]:
    """The pipeline folders at or directly below `folder`: those with a `model_index.json`.

    Raises:
      InputError: if there is none, or one of several lacks its index.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if (folder / "model_index.json").is_file():
        return [folder]
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    found = [child for child in children if (child / "model_index.json").is_file()]
    if not found:
        raise InputError(
            f"{folder} has no model_index.json, nor has any folder in it: "
            "give a released folder, or a folder of them"
        )
    for child in children:
        if child not in found and any(child.glob("*/config.json")):
            raise InputError(f"{child} has networks but no model_index.json")
    return found


def components(pipeline: Path) -> Iterator[tuple[str, str]]:
    """Name and class of each part that a `model_index.json` lists and the cascade uses.

    Raises:
      InputError: if a part is of an unknown class, its folder is missing, or
        its name is more than a folder's.
    """
    path = pipeline / "model_index.json"
    for name, value in read_json(path).items():
        if not isinstance(value, list):
            continue
        if len(value) != 2 or not isinstance(value[1], str | None):
            raise InputError(f"{path}: {name} is {value!r}, not a library and a class")
        if not re.fullmatch(r"\w{1,100}", name, re.ASCII):
            raise InputError(
                f"{path}: a part is called {name!r}, which is no folder's name of letters, digits "
                "and underscores"
            )
        if value[1] is None or value[1] in LEFT_OUT:
            continue
        if value[1] not in NETWORKS | COPIED:
            raise InputError(f"{path}: {name} is a {value[1]}, not known")
        if not (pipeline / name).is_dir():
            # The feature extractor is for the safety checker; released indices
            # name text encoders that a folder may leave to another.
            if value[1] in ("CLIPImageProcessor", "T5EncoderModel", "T5Tokenizer"):
                continue
            raise InputError(f"{pipeline / name} is missing, though model_index.json names it")
        yield name, value[1]


def open_network(folder: Path) -> Network:
    """The network that a folder's `config.json` describes.

    Raises:
      InputError: if it describes none.
    """
    return network(read_json(folder / "config.json"), str(folder / "config.json"))


def check_pipeline(pipeline: Path, to_torch: bool) -> None:
    """Raises InputError for whatever would stop a conversion, before hours went into it."""
    for name, kind in components(pipeline):
        folder = pipeline / name
        if kind in SCHEDULERS:
            path = folder / "scheduler_config.json"
            solver_config(read_json(path), str(path))
        elif kind in NETWORKS and to_torch:
            open_network(folder)
            if not has_params(folder):
                raise InputError(
                    f"{folder} holds no Orbax checkpoint {PARAMS}/; is it PyTorch already?"
                )
            params_folder(folder)
        elif kind in NETWORKS:
            if has_params(folder):
                raise InputError(
                    f"{folder} has a {PARAMS}/: it is converted already; --to-torch goes back"
                )
            match(open_network(folder), torch_files.find_weights(folder).tensors, str(folder))


def copy_small_files(src: Path, dst: Path, within: Sequence[Path]) -> None:
    """Copies a component's files, except weights in whatever format and their indices.

    Args:
      src: the component's folder.
      dst: where to; must not exist.
      within: as for `copy_file`.

    Raises:
      InputError: as `copy_file`.
    """
    dst.mkdir()
    for file in sorted(src.iterdir()):
        weights = WEIGHT_SUFFIXES & set(file.suffixes) or ".index." in file.name
        if file.is_file() and not weights and file.name not in (ORIGIN, REFERENCE):
            copy_file(file, dst, within)


def copy_file(file: Path, folder: Path, within: Sequence[Path]) -> None:
    """Copies a file into a folder.

    Args:
      file: to copy; may be a link.
      folder: where to.
      within: the folders it may be in, see `trusted_folders`.

    Raises:
      InputError: if it is a link that leads elsewhere. A checkpoint from a
        stranger could have one to a private file, and the copy may be published.
    """
    actual = file.resolve()
    if not any(actual.is_relative_to(each) for each in within):
        raise InputError(f"{file} is a link to {actual}, elsewhere: put a copy in its place")
    shutil.copy(file, folder)


def trusted_folders(src: Path, pipelines: Sequence[Path]) -> list[Path]:
    """Where files of a checkpoint may be: in its folders, and where the Hub's cache keeps them."""
    own = [folder.resolve() for folder in (src, *pipelines)]
    # There, each file of `snapshots/REVISION/` is a link into `blobs/`.
    above = [parent for folder in own for parent in folder.parents]
    return own + [each.parent / "blobs" for each in above if each.name == "snapshots"]
