"""Converts checkpoints between the released PyTorch layout and ours.

    python -m show1_jax.convert SRC DST               # PyTorch to JAX
    python -m show1_jax.convert SRC DST --to-torch    # and back

The command line is `show1_jax.cli.convert`; from Python, `convert` does the same, and
`load_diffusers` loads one network.
"""

if __name__ == "__main__":  # before the imports, for which --help does not wait
    import sys

    from show1_jax.cli.convert import main

    sys.exit(main())

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from etils.epath import Path
from jax.typing import DTypeLike

from show1_jax.checkpoints.conversion import convert_pipelines
from show1_jax.checkpoints.networks import network, read_json
from show1_jax.checkpoints.torch_files import find_weights
from show1_jax.checkpoints.torch_params import params_from_torch
from show1_jax.paths import as_path


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


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to_torch: bool = False,
    dtype: DTypeLike | None = None,
    verify: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Converts a whole checkpoint between the released PyTorch layout and ours.

    `dst` appears when all of it is written. Until then it grows in `DST.partial`, from which the
    same call goes on.

    Args:
      src: one released folder, or a folder of them.
      dst: where to; must not exist.
      to_torch: from our layout to PyTorch's, rather than the other way.
      dtype: cast every weight to this; None keeps the stored precision.
      verify: read back what was written and compare it with its source bit for bit.
      report: receives a line for each network.

    Raises:
      InputError: if anything is wrong with `src` or `dst`; then `dst` is not made.
    """
    cast = None if dtype is None else np.dtype(dtype)
    convert_pipelines(as_path(src), as_path(dst), to_torch, cast, verify, report=report)
