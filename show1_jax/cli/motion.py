"""`python -m show1_jax.shapes.motion`: whether clips follow a motion taught from one clip."""

import argparse
from collections.abc import Sequence

from etils.epath import Path

from show1_jax.cli import flags
from show1_jax.cli.flags import PathFlag
from show1_jax.cli.program import Parser, run
from show1_jax.errors import UsageError

# Of `shapes.taught_motions`, which would take NumPy.
MOTIONS = (
    "circle",
    "zigzag",
    "bounce",
    "spiral",
    "eight",
    "box",
    "wave",
    "scribble",
    "whirl",
    "tall_eight",
    "wedge",
    "unwinding",
    "diamond",
    "knot",
    "bow",
    "cup",
    "swing",
    "doodle",
    "squiggle",
    "ramble",
)

DESCRIPTION = """\
Measure whether clips follow a motion that was taught from one clip.

--make draws one clip each of motions that moving shapes do not make. --motion samples prompts of
other shapes and colors (--backgrounds: and backgrounds) with and without each adapter, and prints
how far the paths of what they show are the taught one, and how often shape and color are what was
asked for."""
EXAMPLES = """\
  %(prog)s --make motions
  python train.py --config customize --config.video=motions/circle.mp4 \\
      --config.prompt="$(cat motions/circle.txt)" --config.out=circle.safetensors
  %(prog)s --motion circle --adapter circle.safetensors
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        ("python -m show1_jax.shapes.motion",),
        "(--make DIR | --motion NAME [flags])",
        DESCRIPTION,
        EXAMPLES,
    )
    what = made.add_argument_group("what to do")
    what.add_argument(
        "--make", action=PathFlag, metavar="DIR", help="only draw the clips to be taught, there"
    )
    what.add_argument("--motion", choices=MOTIONS, help="which motion was taught")
    what.add_argument(
        "--adapter", action="append", default=[], metavar="FILE[=WEIGHT]",
        help="an adapter that was taught it; may be given several times, each a row",
    )  # fmt: skip
    how = made.add_argument_group("how to measure")
    flags.add_checkpoint(how)
    how.add_argument(
        "--count", type=flags.whole(1), default=50, metavar="N", help="prompts (default: 50)"
    )
    how.add_argument(
        "--seed", type=flags.whole(0, 2**31), default=0, metavar="N",
        help="decides the prompts (default: 0)",
    )  # fmt: skip
    flags.add_sampling(how)
    how.add_argument(
        "--backgrounds", action="store_true",
        help="ask for other backgrounds than the taught clip's",
    )  # fmt: skip
    how.add_argument(
        "--sheet", action=PathFlag, metavar="FILE",
        help="the contact sheet (default: outputs/motion.png)",
    )  # fmt: skip
    flags.add_config(made, "tiny")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run(parser(), _call, argv)


def _call(args: argparse.Namespace) -> None:
    if not (args.make or args.motion):
        raise UsageError(f"give --motion, one of {', '.join(MOTIONS)}, or --make DIR")
    from show1_jax.shapes.motion import follow, make

    if args.make:
        make(args.make)
        return
    follow(
        args.config,
        flags.checkpoint(args),
        args.motion,
        args.adapter,
        count=args.count,
        seed=args.seed,
        overrides=flags.overrides(args),
        sheet=args.sheet or Path("outputs") / "motion.png",
        backgrounds=args.backgrounds,
    )
