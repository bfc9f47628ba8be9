"""Small PyTorch checkpoints, made on the spot in every format."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import RELEASE

CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "unet": ("diffusers", "UNet3DConditionModel"),
}

Tensors = dict[str, torch.Tensor]


def read_file(file: Path) -> Tensors:
    """One weight file as PyTorch or safetensors reads it."""
    return torch.load(file, weights_only=True) if file.suffix == ".bin" else load_file(file)


def read_tensors(folder: Path) -> Tensors:
    """All tensors of a network folder."""
    tensors: Tensors = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in (".bin", ".safetensors"):
            tensors |= read_file(file)
    return tensors


def write_tensors(file: Path, tensors: Tensors) -> None:
    """One `.bin` or `.safetensors` file."""
    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)


def write_sharded(folder: Path, stem: str, kind: str, tensors: Tensors, variant: str = "") -> None:
    """Two shards and their index, named as transformers names them."""
    keys = list(tensors)
    shards = (keys[: len(keys) // 3], keys[len(keys) // 3 :])
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"{stem}{variant}-{i:05}-of-00002.{kind}"
        write_tensors(folder / name, {key: tensors[key] for key in shard})
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{kind}.index{variant}.json").write_text(json.dumps(index))


def network_copy(folder: Path, source: str) -> Path:
    """A network of the release without its weights."""
    folder.mkdir(parents=True)
    shutil.copy(RELEASE / source / "config.json", folder)
    return folder


def pipeline(folder: Path, source: str, tensors: Tensors | None = None) -> Path:
    """A released folder of one network of the release, as it is or with other tensors.

    Returns the folder of the network in it.
    """
    part = source.rsplit("/", 1)[1]
    network = network_copy(folder / part, source)
    index = {"_class_name": "VideoToVideoSDPipeline", part: CLASSES[part]}
    (folder / "model_index.json").write_text(json.dumps(index))
    if tensors is None:
        for file in (RELEASE / source).glob("*.bin"):
            shutil.copy(file, network)
    else:
        stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
        write_tensors(network / f"{stem}.bin", tensors)
    return network


def same_tensor(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two tensors are equal in shape, dtype and every bit."""
    return (
        actual.dtype == expected.dtype
        and actual.shape == expected.shape
        and actual.flatten().view(torch.uint8).equal(expected.flatten().view(torch.uint8))
    )


def same_params(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Whether two flat parameter trees are equal in names, shapes, dtypes and every bit."""
    return actual.keys() == expected.keys() and all(
        actual[k].dtype == v.dtype
        and actual[k].shape == v.shape
        and np.asarray(actual[k]).tobytes() == np.asarray(v).tobytes()
        for k, v in expected.items()
    )
