"""`python -m show1_jax.benchmark`: seconds and peak memory of what the cascade runs."""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from show1_jax.cli import flags
from show1_jax.cli.flags import PathFlag
from show1_jax.cli.program import Parser, run
from show1_jax.errors import InputError, UsageError

DTYPES = ("float32", "bfloat16")
DESCRIPTION = """\
Measure seconds and peak memory of the programs that sampling and training run.

A stage's name is one guided denoising step, t5 and clip a batch of texts, translation.encode and
.decode the autoencoder on the clips of a batch, train.PART a step of training on --batch clips.
decoding is reading H.264 for training, on one core.
With --torch (extra bench) the same network from PyTorch's libraries, with the same parameters and
inputs, alternates with ours."""
EXAMPLES = """\
  %(prog)s                                             # every program of the config
  %(prog)s keyframes translation.decode train.keyframes
  %(prog)s keyframes --config tiny --profile DIR
  %(prog)s --torch translation first_frame vae t5 --frames 2
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(("python -m show1_jax.benchmark",), "[NAME ...] [flags]", DESCRIPTION, EXAMPLES)
    what = made.add_argument_group("what to measure")
    what.add_argument("names", nargs="*", metavar="NAME", help="programs (default: all of them)")
    what.add_argument("--dtype", choices=DTYPES, help="what to compute in (default: the config's)")
    what.add_argument(
        "--calls", type=flags.whole(1), default=3, metavar="N", help="calls of each (default: 3)"
    )
    what.add_argument(
        "--batch", type=flags.whole(1), default=1, metavar="N",
        help="clips of a training step on each device (default: 1)",
    )  # fmt: skip
    what.add_argument(
        "--profile", action=PathFlag, metavar="DIR", help="write a trace there (XProf, Perfetto)"
    )
    what.add_argument("--torch", action="store_true", help="compare with PyTorch, on CPUs")
    what.add_argument(
        "--frames", type=flags.whole(1), default=2, metavar="N",
        help="frames of a clip, with --torch (default: 2)",
    )  # fmt: skip
    flags.add_config(made, "show1")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run(parser(), _call, argv)


def _call(args: argparse.Namespace) -> None:
    from show1_jax.benchmark import decoding, ours, side_by_side

    config = args.config
    if args.dtype:
        config.dtype = args.dtype
        for part in config.train:
            config.train[part].dtype = args.dtype
    known = list(side_by_side.NETWORKS) if args.torch else list(_names(config))
    chosen = args.names or known
    for name in chosen:
        if name not in known:
            raise UsageError(f"there is no {name!r} to measure; take {', '.join(known)}")
    if len(chosen) > 1:
        _one_by_one(chosen, args)
    elif args.torch:
        side_by_side.compare(config, chosen[0], args.calls, args.frames)
    elif chosen[0] == decoding.NAME:
        decoding.measure(config, args.calls)
    else:
        ours.measure(config, chosen[0], args.calls, args.batch, args.profile)


def _names(config: Any) -> Iterator[str]:
    """What can be measured of a config."""
    from show1_jax import stages
    from show1_jax.benchmark import decoding

    yield from (encoder for encoder in ("t5", "clip") if encoder in config.text)
    yield from stages.names()
    for stage in stages.build(config).values():
        yield from (f"{stage.name}.{extra.name}" for extra in stage.extras(1, 1))
    yield from (f"train.{part}" for part in stages.parts())
    yield decoding.NAME


def _one_by_one(chosen: Sequence[str], args: argparse.Namespace) -> None:
    """Runs each in a process of its own: the peak of memory is a process's.

    Raises:
      InputError: if one failed; the others are measured.
    """
    given = [f"--{name}={vars(args)[name]}" for name in ("calls", "batch", "frames")]
    given += [f"--{name}={vars(args)[name]}" for name in ("dtype", "profile") if vars(args)[name]]
    given += ["--torch"] if args.torch else []
    command = [sys.executable, "-m", "show1_jax.benchmark", *args.config_flags, *given]
    ended = {name: subprocess.run([*command, name], check=False).returncode for name in chosen}
    if failed := [f"{name} (status {status})" for name, status in ended.items() if status]:
        raise InputError(
            f"{', '.join(failed)} could not be measured; -9 is what a system short of memory gives"
        )
