"""The release at its true sizes, with random weights: 26 GB, written tensor by tensor.

    python -m tests.checkpoints.real_sizes FOLDER

The sizes are those of `configs/show1.py`; formats, dtypes and the rest are as
released. Of the T5 encoders, which are equal, two are hard links.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import numpy as np
from show1_jax.configs.show1 import get_config

from show1_jax.checkpoints import tables
from show1_jax.checkpoints.keys import KeyTable
from show1_jax.checkpoints.network_config import clip_json, t5_json, vae_json
from show1_jax.checkpoints.networks import Network
from show1_jax.checkpoints.torch_params import keys_by_path, torch_keys, torch_shape
from show1_jax.checkpoints.torch_writer import WeightWriter
from show1_jax.checkpoints.unet_config import unet_json
from show1_jax.models.clip import CLIPText, CLIPTextConfig
from show1_jax.models.t5 import T5Config, T5Encoder
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.models.vae import VAE, VAEConfig
from tests.conftest import RELEASE

T5 = "show-1-base/text_encoder"
EQUAL_T5 = ("show-1-interpolation/text_encoder", "show-1-sr1/text_encoder")
SHARD_BYTES = 9.41e9
HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)
# With the converted copy, in which the T5 encoders are stored once too.
DISK_BYTES = 55e9
T5_DISK_BYTES = 26e9  # of T5 alone, likewise
PERIOD = 4_194_301  # a prime: what is laid out wrongly does not look right by chance

WEIGHTS = shutil.ignore_patterns("*.bin", "*.safetensors", "*.index.json")

Tensors = dict[str, tuple[tuple[int, ...], np.dtype]]


def networks() -> Iterator[tuple[str, Network, dict, list[str]]]:
    """Folder, network, `config.json` and file names of each network but the linked T5s."""
    config = get_config()

    def network(module: nn.Module, table: KeyTable) -> Network:
        return Network(module, table)

    for stage, folder in (
        ("first_frame", "IF-II-L-v1.0"),
        ("keyframes", "show-1-base"),
        ("interpolation", "show-1-interpolation"),
        ("super_resolution", "show-1-sr1"),
        ("translation", "show-1-sr2"),
    ):
        unet = UNetConfig(**config[stage].unet)
        kind = "safetensors" if stage == "first_frame" else "bin"
        file = f"diffusion_pytorch_model.{kind}"
        yield f"{folder}/unet", network(UNet(unet), tables.UNET), unet_json(unet), [file]
    vae = VAEConfig(**config.translation.vae)
    file = "diffusion_pytorch_model.bin"
    yield "show-1-sr2/vae", network(VAE(vae), tables.VAE), vae_json(vae), [file]
    clip = CLIPTextConfig(**config.text.clip)
    file = "pytorch_model.bin"
    yield "show-1-sr2/text_encoder", network(CLIPText(clip), tables.CLIP), clip_json(clip), [file]
    t5 = T5Config(**config.text.t5)
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    yield T5, network(T5Encoder(t5), tables.T5), t5_json(t5), shards


def build(folder: Path) -> None:
    """Writes the release.

    Raises:
      OSError: if the disk has no room for it and for what it is converted to.
    """
    _check_room(folder, DISK_BYTES)
    for pipeline in sorted(RELEASE.iterdir()):
        if pipeline.is_dir():
            shutil.copytree(pipeline, folder / pipeline.name, ignore=WEIGHTS)
    for number, (name, *network) in enumerate(networks()):
        _write(folder / name, *network, np.random.default_rng(number))
    for name in EQUAL_T5:
        for file in (folder / T5).iterdir():
            (folder / name / file.name).unlink(missing_ok=True)
            os.link(file, folder / name / file.name)


def build_t5(folder: Path) -> None:
    """Writes the release's first folder with nothing in it but T5 and its tokenizer.

    Raises:
      OSError: if the disk has no room for it and for what it is converted to.
    """
    _check_room(folder, T5_DISK_BYTES)
    pipeline = T5.partition("/")[0]
    index = json.loads((RELEASE / pipeline / "model_index.json").read_text())
    parts = [name for name, value in index.items() if isinstance(value, list)]
    left_out = [name for name in parts if name not in ("text_encoder", "tokenizer")]
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(RELEASE / pipeline / name, folder / pipeline / name, ignore=WEIGHTS)
    kept = {name: value for name, value in index.items() if name not in left_out}
    (folder / pipeline / "model_index.json").write_text(json.dumps(kept))
    (network,) = (rest for name, *rest in networks() if name == T5)
    _write(folder / T5, *network, np.random.default_rng(0))


def _check_room(folder: Path, size: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"{folder} has {free / 1e9:.0f} GB free, not {size / 1e9:.0f}")


def _write(
    folder: Path, network: Network, config: dict, files: list[str], rng: np.random.Generator
) -> None:
    """A network's config, and its weights in one file, or in shards with an index."""
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = _tensors(network)
    file_of: dict[str, str] = {}
    size, names = 0.0, iter(files)
    name = next(names)
    for key, (shape, dtype) in tensors.items():
        size += math.prod(shape) * dtype.itemsize
        if len(files) > 1 and size > SHARD_BYTES:
            name, size = next(names), 0.0
        file_of[key] = name
    noise = rng.standard_normal(PERIOD, np.float32)
    for name in files:
        own = {key: tensor for key, tensor in tensors.items() if file_of[key] == name}
        writer = WeightWriter(folder / name, own)
        for key, (shape, dtype) in own.items():
            array = _values(noise, shape, rng) + (key.endswith(".weight") and len(shape) == 1)
            writer.write(key, array.astype(dtype))
        writer.finish()
    if len(files) > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": file_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _tensors(network: Network) -> Tensors:
    """Shapes and dtypes under PyTorch's keys; T5's are half precision but for one layer's."""
    tensors: Tensors = {}
    for path, keys in keys_by_path(network.table, torch_keys(network)).items():
        single = network.table is tables.T5 and path.endswith("ff_out/kernel")
        for key, layout in keys:
            shape = torch_shape(layout, network.shapes[path])
            tensors[key] = (shape, SINGLE if single else HALF)
    return tensors


def _values(noise: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers around 0 with which a network's activations stay of order 1."""
    start = int(rng.integers(PERIOD))
    cycle = np.concatenate([noise[start:], noise[:start]])
    cycle *= math.sqrt(1 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
    return np.resize(cycle, math.prod(shape)).reshape(shape)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
