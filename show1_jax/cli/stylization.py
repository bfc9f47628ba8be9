"""`python -m show1_jax.shapes.stylization`: whether a clip given another look keeps its path."""

import argparse
from collections.abc import Sequence

from etils.epath import Path

from show1_jax.cli import flags
from show1_jax.cli.flags import PathFlag
from show1_jax.cli.motion import MOTIONS
from show1_jax.cli.program import Parser, run

DESCRIPTION = """\
Measure whether a clip that is given another look keeps its path: by the noise that makes it.

Drawn clips are inverted under their own prompts (sample.py --invert), and their noise is sampled
under prompts with another color, shape or background (--from-noise). They move as no training clip
does and no prompt can ask for, so that the path can come from the noise alone, or from an adapter
that was taught it; --motion straight is for clips whose prompts tell their path. A last row shows
what the same prompts make of other noise."""
EXAMPLES = """\
  %(prog)s --pairs 50
  %(prog)s --motion circle --adapter circle.safetensors
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(("python -m show1_jax.shapes.stylization",), "[flags]", DESCRIPTION, EXAMPLES)
    what = made.add_argument_group("what to measure")
    flags.add_checkpoint(what)
    what.add_argument(
        "--pairs", type=flags.whole(1), metavar="N",
        help="clips (default: 50, or with --adapter all that differ from the taught one in a look)",
    )  # fmt: skip
    what.add_argument(
        "--motion", choices=(*MOTIONS, "straight"),
        help="how clips move (default: circle, zigzag, bounce and spiral)",
    )  # fmt: skip
    what.add_argument(
        "--adapter", default="", metavar="FILE[=WEIGHT]", help="what was taught --motion"
    )
    what.add_argument(
        "--seed", type=flags.whole(0, 2**31), default=0, metavar="N",
        help="decides the clips and prompts (default: 0)",
    )  # fmt: skip
    what.add_argument(
        "--sheet", action=PathFlag, metavar="FILE",
        help="the contact sheet (default: outputs/stylization.png)",
    )  # fmt: skip
    flags.add_config(made, "tiny")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run(parser(), _call, argv)


def _call(args: argparse.Namespace) -> None:
    from show1_jax.shapes.stylization import STAGE, choose, evaluate_stylization

    both = choose(args.pairs, args.seed, args.motion, args.adapter)
    if args.adapter:
        args.config[STAGE].adapters = (args.adapter,)
    sheet = args.sheet or Path("outputs") / "stylization.png"
    evaluate_stylization(args.config, flags.checkpoint(args), both, args.seed, sheet)
