"""Converts checkpoints between the released PyTorch layout and ours.

    python -m show1_jax.convert SRC DST               # PyTorch to JAX
    python -m show1_jax.convert SRC DST --to-torch    # and back

The command line is `show1_jax.cli.convert`; from Python, `load_diffusers` loads one network.
"""

if __name__ == "__main__":  # before the imports, for which --help does not wait
    import sys

    from show1_jax.cli.convert import main

    sys.exit(main())

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from jax.typing import DTypeLike

from show1_jax.checkpoints.networks import network, read_json
from show1_jax.checkpoints.torch_files import find_weights
from show1_jax.checkpoints.torch_params import params_from_torch


def load_diffusers(
    folder: str | Path, dtype: DTypeLike | None = None
) -> tuple[nn.Module, dict[str, jax.Array]]:
    """Loads one PyTorch network folder (`config.json` and weights) as it is.

    UNets are called `module.apply({"params": params}, sample, timesteps, text,
    noise_level=None)` on `(batch, frames, height, width, channels)`, an image
    being a clip of one frame. The VAE has the methods `encode` and `decode`,
    CLIP takes `input_ids`, T5 `input_ids, attention_mask`. All compute in fp32.

    Args:
      folder: for example `show-1-base/unet`.
      dtype: cast the parameters to this dtype; None keeps the stored one.

    Returns:
      The module and its parameters.

    Raises:
      InputError: if the folder is not a whole network of a known kind.
    """
    folder = Path(folder)
    built = network(read_json(folder / "config.json"), str(folder / "config.json"))
    cast = None if dtype is None else np.dtype(dtype)
    return built.module, params_from_torch(built, find_weights(folder).tensors, str(folder), cast)
