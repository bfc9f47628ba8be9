"""Finds the networks and other parts of released folders."""

import re
from collections.abc import Iterator, Sequence

from etils.epath import Path

from show1_jax import files
from show1_jax.checkpoints import torch_files
from show1_jax.checkpoints.layout import ORIGIN, PARAMS, REFERENCE, has_params, params_folder
from show1_jax.checkpoints.networks import Network, network, read_json
from show1_jax.checkpoints.scheduler_config import solver_config
from show1_jax.checkpoints.torch_params import match
from show1_jax.errors import InputError
from show1_jax.files import real_path

ENCODERS = {"T5EncoderModel", "CLIPTextModel"}
NETWORKS = {"UNet3DConditionModel", "UNet2DConditionModel", "AutoencoderKL"} | ENCODERS
SCHEDULERS = {"DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"}
COPIED = SCHEDULERS | {"T5Tokenizer", "CLIPTokenizer", "CLIPImageProcessor"}
# DeepFloyd's watermark and safety networks are not part of the cascade.
LEFT_OUT = {"IFSafetyChecker", "IFWatermarker"}

WEIGHT_SUFFIXES = {".bin", ".safetensors", ".msgpack", ".h5", ".ckpt", ".onnx", ".pt"}


def find_pipelines(folder: Path) -> list[Path]:
    """Finds folders with a `model_index.json`: `folder` itself, or those directly in it.

    Raises:
      InputError: if there is none, or a folder with networks lacks its index.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a checkpoint or a released folder")
    if (folder / "model_index.json").is_file():
        return [folder]
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    found = [child for child in children if (child / "model_index.json").is_file()]
    if not found:
        trained = folder / "checkpoint"  # where training puts it
        if any(trained.glob("*/model_index.json")):
            raise InputError(f"{folder} is no checkpoint, but {trained} is: give that one")
        raise InputError(
            f"neither {folder} nor a folder in it has a model_index.json; give a released folder, "
            "or a folder of them"
        )
    for child in children:
        if child not in found and any(child.glob("*/config.json")):
            raise InputError(f"{child} has networks but no model_index.json; copy it again")
    return found


def components(pipeline: Path) -> Iterator[tuple[str, str]]:
    """Yields name and class of each part in a `model_index.json` that the cascade uses.

    Raises:
      InputError: if a part's class is unknown, its folder is missing, or its name is not a plain
        folder name.
    """
    path = pipeline / "model_index.json"
    for name, value in read_json(path).items():
        if not isinstance(value, list):
            continue
        if len(value) != 2 or not isinstance(value[1], str | None):
            raise InputError(f"{path}: {name} is {value!r}, but must be a library and a class")
        if not re.fullmatch(r"\w{1,100}", name, re.ASCII):
            raise InputError(
                f"{path}: a part has the name {name!r}, but names must consist of letters, digits "
                "and underscores"
            )
        if value[1] is None or value[1] in LEFT_OUT:
            continue
        if value[1] not in NETWORKS | COPIED:
            raise InputError(f"{path}: {name} is of the unknown class {value[1]}")
        if not (pipeline / name).is_dir():
            # The feature extractor belongs to the safety checker. Released indices name text
            # encoders that are only in another folder.
            if value[1] in ("CLIPImageProcessor", "T5EncoderModel", "T5Tokenizer"):
                continue
            raise InputError(f"{pipeline / name} is missing, but model_index.json names it")
        yield name, value[1]


def open_network(folder: Path) -> Network:
    """Builds the network that a folder's `config.json` describes.

    Raises:
      InputError: if it describes no network of the cascade.
    """
    return network(read_json(folder / "config.json"), str(folder / "config.json"))


def check_pipeline(pipeline: Path, to_torch: bool) -> None:
    """Raises InputError if a conversion would fail, before it takes hours."""
    for name, kind in components(pipeline):
        folder = pipeline / name
        if kind in SCHEDULERS:
            path = folder / "scheduler_config.json"
            solver_config(read_json(path), str(path))
        elif kind in NETWORKS and to_torch:
            open_network(folder)
            if not has_params(folder):
                raise InputError(
                    f"{folder} has no Orbax checkpoint {PARAMS}/; it may be PyTorch already"
                )
            params_folder(folder)
        elif kind in NETWORKS:
            if has_params(folder):
                raise InputError(
                    f"{folder} has a {PARAMS}/: it is converted already; --to-torch converts back"
                )
            match(open_network(folder), torch_files.find_weights(folder).tensors, str(folder))


def copy_small_files(src: Path, dst: Path, within: Sequence[Path]) -> None:
    """Copies a component's files, except weights in any format and their indices.

    Args:
      src: the component's folder.
      dst: folder to make; must not exist.
      within: as in `copy_file`.

    Raises:
      InputError: as in `copy_file`.
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
      folder: to copy to.
      within: the folders that the file may be in; see `trusted_folders`.

    Raises:
      InputError: if the file is a link out of these folders. A stranger's checkpoint could have a
        link to a private file, and the copy may be published.
    """
    actual = real_path(file)
    if not any(actual.is_relative_to(each) for each in within):
        raise InputError(
            f"{file} is a link to {actual}, outside of the checkpoint; replace it with a copy"
        )
    files.copy_file(file, folder / file.name)


def trusted_folders(src: Path, pipelines: Sequence[Path]) -> list[Path]:
    """Returns the folders that a checkpoint's files may be in: its own, and the Hub's cache."""
    own = [real_path(folder) for folder in (src, *pipelines)]
    # In the Hub's cache, each file of `snapshots/REVISION/` is a link into `blobs/`.
    above = [parent for folder in own for parent in folder.parents]
    return own + [each.parent / "blobs" for each in above if each.name == "snapshots"]
