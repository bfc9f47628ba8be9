"""Seconds and peak memory of what the cascade runs.

    python -m show1_jax.benchmark                                  # every program of the config
    python -m show1_jax.benchmark keyframes translation.decode train.keyframes
    python -m show1_jax.benchmark keyframes --config configs/tiny.py --profile DIR
    python -m show1_jax.benchmark --torch translation first_frame vae t5 --frames 2

A stage's name is one guided denoising step, `t5` and `clip` a batch of texts,
`translation.encode` and `.decode` the autoencoder on the clips of a batch,
`train.PART` a step of training on --batch clips. With --torch (extra `bench`) the same network
from PyTorch's libraries, with the same parameters and inputs, alternates with ours.
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from show1_jax import stages
from show1_jax.benchmark import ours, side_by_side
from show1_jax.errors import InputError
from show1_jax.paths import local_path

DTYPES = ("float32", "bfloat16")


def load_config(path: Path) -> ConfigDict:
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


def names(config: ConfigDict) -> Iterator[str]:
    """What can be measured of a config."""
    yield from (encoder for encoder in ("t5", "clip") if encoder in config.text)
    yield from stages.names()
    yield from ("translation.encode", "translation.decode")
    yield from (f"train.{part}" for part in stages.parts())


def main() -> None:
    """Runs the command line."""
    text, _, commands = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=text, epilog=commands, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    default = Path(__file__).parents[2] / "configs" / "show1.py"
    parser.add_argument("--config", default=str(default))
    parser.add_argument("--dtype", choices=DTYPES, help="default: the config's")
    parser.add_argument("--calls", type=int, default=3, help="of each (default: 3)")
    parser.add_argument(
        "--batch", type=int, default=1, help="clips of a training step on each device (default: 1)"
    )
    parser.add_argument("--profile", help="write a trace there (XProf, Perfetto)")
    parser.add_argument("--torch", action="store_true", help="compare with PyTorch")
    parser.add_argument("--frames", type=int, default=2, help="with --torch: of a clip")
    args = parser.parse_args()
    try:
        config = load_config(local_path(args.config))
        profile = local_path(args.profile) if args.profile else None
        if min(args.calls, args.frames, args.batch) < 1:
            raise InputError("--calls, --frames and --batch must be at least 1")
        if args.dtype:
            config.dtype = args.dtype
            for part in stages.parts():
                config.train[part].dtype = args.dtype
        known = list(side_by_side.NETWORKS) if args.torch else list(names(config))
        chosen = args.names or known
        for name in chosen:
            if name not in known:
                raise InputError(f"there is no {name!r} to measure; take {', '.join(known)}")
        if len(chosen) > 1:
            _one_by_one(chosen, args)
            return
        if args.torch:
            side_by_side.compare(config, chosen[0], args.calls, args.frames)
        else:
            ours.measure(config, chosen[0], args.calls, args.batch, profile)
    except InputError as error:
        sys.exit(f"error: {error}")


def _one_by_one(chosen: list[str], args: argparse.Namespace) -> None:
    """Runs each in a process of its own: the peak of memory is a process's.

    Raises:
      InputError: if one failed; the others are measured.
    """
    given = [f"--{name}={vars(args)[name]}" for name in ("config", "calls", "batch", "frames")]
    given += [f"--{name}={vars(args)[name]}" for name in ("dtype", "profile") if vars(args)[name]]
    given += ["--torch"] if args.torch else []
    command = [sys.executable, "-m", "show1_jax.benchmark", *given]
    ended = {name: subprocess.run([*command, name], check=False).returncode for name in chosen}
    if failed := [f"{name} (status {status})" for name, status in ended.items() if status]:
        raise InputError(
            f"{', '.join(failed)} could not be measured; -9 is what a system short of memory gives"
        )


if __name__ == "__main__":
    main()
