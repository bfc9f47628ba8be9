"""Seconds and peak memory of one denoiser call.

    python -m show1_jax.benchmark keyframes
    python -m show1_jax.benchmark keyframes --config configs/show1.py --dtype float32

Parameters are constant: speed and memory do not depend on them.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from show1_jax.checkpoints.networks import abstract_params
from show1_jax.errors import InputError
from show1_jax.models.unet import UNet, UNetConfig
from show1_jax.training.metrics import peak_memory

# Frames, height, width of one clip in one call, by the released settings.
SHAPES = {
    "keyframes": (8, 40, 64),
    "interpolation": (5, 40, 64),
    "first_frame": (1, 160, 256),
    "super_resolution": (8, 160, 256),
    "translation": (29, 40, 72),
}


def measure(config: UNetConfig, shape: tuple[int, ...], dtype: str, calls: int) -> None:
    """Compiles and runs a denoiser on two clips of noise, and prints what it took."""
    unet = UNet(config, jnp.dtype(dtype), jnp.dtype(dtype))
    shapes = abstract_params(unet)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    sample = jax.random.normal(jax.random.key(0), (2, *shape, config.in_channels))
    inputs = [sample, jnp.full(2, 500), jnp.ones((2, 77, config.text_dim))]
    if config.noise_level:
        inputs.append(jnp.full(2, 250))
    print(f"{count:,} parameters in {dtype}, sample {sample.shape}, {jax.devices()[0].device_kind}")

    begin = time.perf_counter()
    call = jax.jit(unet.apply).lower({"params": params}, *inputs).compile()
    print(f"compiled in {time.perf_counter() - begin:.1f} s")
    for _ in range(calls):
        begin = time.perf_counter()
        jax.block_until_ready(call({"params": params}, *inputs))
        print(f"called in {time.perf_counter() - begin:.2f} s")
    print(f"peak {peak_memory() / 2**30:.2f} GiB")


def load_config(path: Path) -> Any:
    """The `get_config()` of a config file.

    Raises:
      InputError: if there is no such file.
    """
    spec = importlib.util.spec_from_file_location("config", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{path} is not a config file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Seconds and peak memory of one denoiser call.")
    parser.add_argument("stage", choices=SHAPES)
    default = Path(__file__).parent.parent / "configs" / "show1.py"
    parser.add_argument("--config", type=Path, default=default)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--calls", type=int, default=3)
    args = parser.parse_args()
    try:
        config = UNetConfig(**load_config(args.config)[args.stage].unet)
        measure(config, SHAPES[args.stage], args.dtype, args.calls)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
