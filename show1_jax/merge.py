"""Puts adapters into a checkpoint for good.

    python -m show1_jax.merge CHECKPOINT MERGED ADAPTER.safetensors[=WEIGHT] ...

MERGED is CHECKPOINT with what the adapters change added to its keyframe denoiser, at all
timesteps, in the dtype that it is stored in; `show1_jax.convert --to-torch` takes it back to
PyTorch.
"""

if __name__ == "__main__":  # before the imports, for which --help does not wait
    import sys

    from show1_jax.cli.merge import main

    sys.exit(main())

import sys

import jax.numpy as jnp
from etils.epath import Path

from show1_jax.adapters.files import apply_adapters, load_adapter, parse_adapter
from show1_jax.checkpoints.export import export_network
from show1_jax.checkpoints.layout import PARAMS, reference, write_reference
from show1_jax.checkpoints.released import find_stages
from show1_jax.checkpoints.store import load_params
from show1_jax.errors import InputError, why
from show1_jax.files import copy_folder, move, remove
from show1_jax.models.unet import UNet
from show1_jax.stages import STAGES


def merge(checkpoint: Path, merged: Path, adapters: list[str]) -> None:
    """Writes a checkpoint with adapters in its keyframe denoiser.

    Args:
      checkpoint: a converted checkpoint.
      merged: the folder to write, which must not exist.
      adapters: FILE or FILE=WEIGHT each.

    Raises:
      InputError: if an adapter is not for it, or the folder exists or cannot be written.
    """
    folders, own = find_stages(checkpoint), STAGES[0]
    if own.name not in folders:
        raise InputError(f"{checkpoint} has no {own.name}")
    if merged.exists():
        raise InputError(f"{merged} exists already; give another folder")
    folder = folders[own.name]
    unet = folder.module("unet", jnp.float32)
    assert isinstance(unet, UNet)
    params = load_params(folder.folder / "unet" / PARAMS)
    parsed = [parse_adapter(text) for text in adapters]
    loaded = [(load_adapter(path, params), weight) for path, weight in parsed]
    changed = apply_adapters(params, loaded)
    partial = merged.with_name(f".{merged.name}.partial")
    try:
        remove(partial)
        for stage, each in folders.items():
            if stage == own.name:  # where the network is written, whatever the folder was called
                copy_folder(each.folder, partial / own.folder, without=["unet"])
            else:
                copy_folder(each.folder, partial / each.folder.name)
        for network in partial.glob("*/*"):
            owner, _, part = (reference(network) or "").partition("/")
            if owner == folder.folder.name:
                write_reference(network, f"{own.folder}/{part}")
        export_network(partial, own.name, unet, changed)
        move(partial, merged)
    except OSError as error:
        raise InputError(f"{merged} cannot be written: {why(error)}") from None
    finally:
        remove(partial)
    for adapter, _ in loaded:
        if adapter.timesteps is not None:
            first, end = adapter.timesteps
            print(
                f"{adapter.source} is for timesteps {first} to {end - 1}; merged, it changes all "
                "timesteps, which --adapter does not",
                file=sys.stderr,
            )
