"""`python -m show1_jax.merge`: adapters into a checkpoint, for good."""

import argparse
from collections.abc import Sequence

from show1_jax.cli.program import Parser, run
from show1_jax.paths import as_path

DESCRIPTION = """\
Put adapters into a checkpoint for good.

MERGED is CHECKPOINT with what the adapters change added to its keyframe denoiser, at all timesteps,
in the dtype that it is stored in; show1_jax.convert --to-torch takes it back to PyTorch."""
EXAMPLES = """\
  %(prog)s checkpoints/show1 MERGED circle.safetensors=0.8
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        ("python -m show1_jax.merge",), "CHECKPOINT MERGED ADAPTER ...", DESCRIPTION, EXAMPLES
    )
    what = made.add_argument_group("what to merge")
    what.add_argument("checkpoint", metavar="CHECKPOINT", help="a converted checkpoint")
    what.add_argument("merged", metavar="MERGED", help="the folder to make; it must not exist yet")
    what.add_argument("adapters", nargs="+", metavar="ADAPTER", help="FILE or FILE=WEIGHT")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run(parser(), _call, argv)


def _call(args: argparse.Namespace) -> None:
    checkpoint, merged = as_path(args.checkpoint), as_path(args.merged)
    from show1_jax.merge import merge

    merge(checkpoint, merged, args.adapters)
    print(args.merged)
