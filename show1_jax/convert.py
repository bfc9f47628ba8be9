"""Converts checkpoints between the released PyTorch layout and ours.

    python -m show1_jax.convert SRC DST               # PyTorch to JAX
    python -m show1_jax.convert SRC DST --to-torch    # and back

SRC is one released folder (it has a `model_index.json`) or a folder of them.
DST gets the same layout, with an Orbax checkpoint `params/` in place of each
network's weight files; configurations, tokenizers and scheduler settings are
copied. Nothing appears at DST until all of it is written: it grows in
DST.partial, from where the same command goes on if it was cut off. Text encoders
that are equal are stored once.
"""

import argparse
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from show1_jax.checkpoints.conversion import convert_pipelines
from show1_jax.checkpoints.networks import network, read_json
from show1_jax.checkpoints.progress import Progress
from show1_jax.checkpoints.torch_files import find_weights
from show1_jax.checkpoints.torch_params import params_from_torch
from show1_jax.errors import InputError, Preempted
from show1_jax.paths import local_path

DTYPES = {"fp16": jnp.float16, "bf16": jnp.bfloat16, "fp32": jnp.float32}


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


class _Signals:
    """Notices SIGINT, SIGTERM and SIGHUP, while it is entered; the second of one kind kills."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raises Preempted if one came."""
        if self.number is not None:
            raise Preempted(signal.Signals(self.number).name)

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and `&` set them
                    self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; exits with status 1 and one line on bad input.

    Exits with status 128 and the signal's number if one stopped it.
    """
    parser = argparse.ArgumentParser(
        prog="python -m show1_jax.convert",
        description="Convert checkpoints between the released PyTorch layout and Orbax.",
    )
    parser.add_argument("src", help="a released folder, or a folder of them")
    parser.add_argument("dst", help="the folder to make; it must not exist yet")
    parser.add_argument("--to-torch", action="store_true", help="from Orbax back to PyTorch")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="cast every weight (default: keep the stored precision)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read the result back and compare bit for bit"
    )
    args = parser.parse_args(arguments)
    # Conversion is bytes in, bytes out: keep accelerators out of it.
    jax.config.update("jax_platforms", "cpu")
    dtype = np.dtype(DTYPES[args.dtype]) if args.dtype else None
    with _Signals() as signals:
        progress = Progress(check=signals.check)
        try:
            src, dst = local_path(args.src), local_path(args.dst)
            convert_pipelines(src, dst, args.to_torch, dtype, args.verify, _say, progress)
        except InputError as error:
            sys.exit(f"error: {error}")
        except Preempted as stopped:
            print(stopped, file=sys.stderr, flush=True)
            sys.exit(128 + (signals.number or 0))


if __name__ == "__main__":
    main()
