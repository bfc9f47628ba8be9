"""Whole released folders: which networks they hold, and their conversion."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from show1_jax.checkpoints import torch_files
from show1_jax.checkpoints.networks import Network, network, read_json
from show1_jax.checkpoints.scheduler_config import solver_config
from show1_jax.checkpoints.store import check_shapes, discard, load_params, save_params
from show1_jax.checkpoints.torch_params import (
    cast,
    match,
    params_from_torch,
    params_to_torch,
    torch_keys,
    verify_params,
)
from show1_jax.errors import InputError
from show1_jax.models.clip import CLIPText
from show1_jax.models.t5 import T5Encoder

NETWORKS = {"UNet3DConditionModel", "UNet2DConditionModel", "AutoencoderKL"}
NETWORKS |= {"T5EncoderModel", "CLIPTextModel"}
SCHEDULERS = {"DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"}
COPIED = SCHEDULERS | {"T5Tokenizer", "CLIPTokenizer", "CLIPImageProcessor"}
# DeepFloyd's watermark and safety networks are no part of the cascade.
LEFT_OUT = {"IFSafetyChecker", "IFWatermarker"}

WEIGHT_SUFFIXES = {".bin", ".safetensors", ".msgpack", ".h5", ".ckpt", ".onnx", ".pt"}
PARAMS = "params"
# Which file held which tensor, so that converting back makes the same files.
ORIGIN = "torch_files.json"


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
      InputError: if a part is of an unknown class or its folder is missing.
    """
    index = read_json(pipeline / "model_index.json")
    for name, value in index.items():
        if not isinstance(value, list):
            continue
        if len(value) != 2 or not isinstance(value[1], str | None):
            raise InputError(
                f"{pipeline / 'model_index.json'}: {name} is {value!r}, not a library and a class"
            )
        if value[1] is None or value[1] in LEFT_OUT:
            continue
        if value[1] not in NETWORKS | COPIED:
            raise InputError(f"{pipeline / 'model_index.json'}: {name} is a {value[1]}, not known")
        if not (pipeline / name).is_dir():
            # The feature extractor is for the safety checker; released indices
            # name text encoders that a folder may leave to another.
            if value[1] in ("CLIPImageProcessor", "T5EncoderModel", "T5Tokenizer"):
                continue
            raise InputError(f"{pipeline / name} is missing, though model_index.json names it")
        yield name, value[1]


def convert_pipelines(
    src: Path,
    dst: Path,
    to_torch: bool,
    dtype: np.dtype | None,
    verify: bool,
    report: Callable[[str], None],
) -> None:
    """Converts every pipeline at or below `src`; `dst` appears when all of it is written.

    Args:
      src: a pipeline folder or a folder of them.
      dst: where to; must not exist.
      to_torch: from our layout to PyTorch's, rather than the other way.
      dtype: cast to this; None keeps the stored precision.
      verify: compare what was written with its source bit for bit.
      report: receives a line for each network.

    Raises:
      InputError: if anything is wrong with `src` or `dst`; then `dst` is not made.
    """
    if to_torch and verify and dtype is not None:
        raise InputError("--to-torch --verify compares stored precisions; leave --dtype out")
    pipelines = find_pipelines(src)
    for pipeline in pipelines:
        _check(pipeline, to_torch)
    parent = dst.absolute().parent
    if dst.exists():
        raise InputError(f"{dst} exists already; give a new folder")
    new_parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{dst.name}-", dir=parent))
    except OSError as error:
        raise InputError(f"{dst} cannot be written: {error.strerror}") from None
    try:
        for pipeline in pipelines:
            target = work / "out" / pipeline.relative_to(src)
            target.mkdir(parents=True)
            shutil.copy(pipeline / "model_index.json", target)
            for name, kind in components(pipeline):
                _copy_small_files(pipeline / name, target / name)
                if kind in NETWORKS:
                    convert = _network_to_torch if to_torch else _network_to_orbax
                    count = convert(pipeline / name, target / name, dtype, verify)
                    verified = ", verified" if verify else ""
                    report(f"{pipeline.name}/{name}: {count:,} parameters{verified}")
        os.rename(work / "out", dst)
    except OSError as error:
        raise InputError(f"{dst} cannot be written: {error.strerror or error}") from None
    finally:
        discard(work)
        if not dst.exists():
            for folder in new_parents:
                folder.rmdir()


def _check(pipeline: Path, to_torch: bool) -> None:
    """Raises InputError for whatever would stop a conversion, before hours went into it."""
    for name, kind in components(pipeline):
        folder = pipeline / name
        if kind in SCHEDULERS:
            path = folder / "scheduler_config.json"
            solver_config(read_json(path), str(path))
        elif kind in NETWORKS and to_torch:
            _open(folder)
            if not (folder / PARAMS).is_dir():
                raise InputError(
                    f"{folder} holds no Orbax checkpoint {PARAMS}/; is it PyTorch already?"
                )
        elif kind in NETWORKS:
            if (folder / PARAMS).is_dir():
                raise InputError(
                    f"{folder} has a {PARAMS}/: it is converted already; --to-torch goes back"
                )
            match(_open(folder), torch_files.find_weights(folder).tensors, str(folder))


def _copy_small_files(src: Path, dst: Path) -> None:
    """Copies a component's files, except weights in whatever format and their indices."""
    dst.mkdir()
    for file in sorted(src.iterdir()):
        weights = WEIGHT_SUFFIXES & set(file.suffixes) or ".index." in file.name
        if file.is_file() and not weights and file.name != ORIGIN:
            shutil.copy(file, dst)


def _open(folder: Path) -> Network:
    return network(read_json(folder / "config.json"), str(folder / "config.json"))


def _network_to_orbax(src: Path, dst: Path, dtype: np.dtype | None, verify: bool) -> int:
    built, weights = _open(src), torch_files.find_weights(src)
    params = params_from_torch(built, weights.tensors, str(src), dtype)
    save_params(dst / PARAMS, params)
    # One network in memory at a time, and `verify` loads it again.
    del params
    origin = {
        "index": weights.index.name if weights.index else None,
        "files": {key: stored.file.name for key, stored in weights.tensors.items()},
        "buffers": {
            key: list(stored.shape)
            for key, stored in weights.tensors.items()
            if key in built.table.buffers
        },
    }
    (dst / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")
    if verify:
        verify_params(built, weights.tensors, load_params(dst / PARAMS), str(src), dtype)
    return sum(math.prod(shape) for shape in built.shapes.values())


def _network_to_torch(src: Path, dst: Path, dtype: np.dtype | None, verify: bool) -> int:
    built = _open(src)
    origin = _origin(src, built)
    params = flatten_dict(load_params(src / PARAMS), sep="/")
    check_shapes({path: v.shape for path, v in params.items()}, built.shapes, src / PARAMS)
    arrays = {}
    for path in list(params):
        arrays[path] = cast(np.asarray(params.pop(path)), dtype, f"{src}: {path}")
    later = set(origin["files"])
    for name, keys in torch_files.by_file(origin["files"]):
        wanted = {key: tuple(origin["buffers"].get(key, ())) for key in keys}
        later -= set(keys)
        torch_files.write_file(dst / name, params_to_torch(built.table, arrays, wanted, later))
    if origin["index"]:
        _write_index(dst / origin["index"], origin["files"])
    if verify:
        tensors = torch_files.find_weights(dst).tensors
        verify_params(built, tensors, load_params(src / PARAMS), str(dst))
    return sum(math.prod(shape) for shape in built.shapes.values())


def _origin(src: Path, built: Network) -> dict[str, Any]:
    """Which file each tensor goes to: as it came, or one new file for a network trained here."""
    if not (src / ORIGIN).is_file():
        text = isinstance(built.module, T5Encoder | CLIPText)
        name = "model.safetensors" if text else "diffusion_pytorch_model.safetensors"
        return {"index": None, "files": dict.fromkeys(torch_keys(built), name), "buffers": {}}
    origin = {"index": None, "files": {}, "buffers": {}} | read_json(src / ORIGIN)
    files, buffers = origin["files"], origin["buffers"]
    if isinstance(files, dict) and isinstance(buffers, dict):
        found = [built.table.to_ours(key) for key in files if key not in buffers]
        if {path and path[0] for path in found} == built.shapes.keys():
            return origin
    raise InputError(f"{src / ORIGIN} does not list this network; delete it for new file names")


def _write_index(path: Path, files: dict[str, str]) -> None:
    tensors = {
        key: stored
        for name in dict.fromkeys(files.values())
        for key, stored in torch_files.read_header(path.parent / name).items()
    }
    size = sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": files}
    path.write_text(json.dumps(index, indent=2) + "\n")
