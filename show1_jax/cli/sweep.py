"""`python -m show1_jax.shapes.sweep`: which solver, how many steps, how much guidance."""

import argparse
from collections.abc import Sequence

from show1_jax.cli import flags
from show1_jax.cli.flags import MAX_SEED, PathFlag
from show1_jax.cli.program import Parser, run

DESCRIPTION = """\
Measure keyframes of several solvers, numbers of steps and guidance scales.

Prints how often keyframes of the validation combinations show what was asked for, and draws it over
the number of steps (extra plot). Every setting samples the same prompts from the same seeds."""
EXAMPLES = """\
  %(prog)s --count 50 --steps 5,10,20,50 --guidance 2
  %(prog)s --count 50 --solvers ddim --steps 10 --guidance 1,2,4 --plot sweep.png
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(("python -m show1_jax.shapes.sweep",), "[flags]", DESCRIPTION, EXAMPLES)
    what = made.add_argument_group("what to measure")
    flags.add_checkpoint(what)
    what.add_argument(
        "--count", type=flags.whole(1), default=50, metavar="N", help="prompts (default: 50)"
    )
    what.add_argument(
        "--seed", type=flags.whole(0, MAX_SEED), default=0, metavar="N",
        help="decides the prompts and their noise (default: 0)",
    )  # fmt: skip
    what.add_argument(
        "--solvers", type=flags.listed, default=["dpm_solver", "ddim", "ddpm"], metavar="NAMES",
        help="the solvers to try (default: dpm_solver,ddim,ddpm)",
    )  # fmt: skip
    what.add_argument(
        "--steps", type=flags.numbers(int), default=[5, 10, 20, 50], metavar="NUMBERS",
        help="the numbers of steps to try (default: 5,10,20,50)",
    )  # fmt: skip
    what.add_argument(
        "--guidance", type=flags.numbers(float), default=[2.0], metavar="SCALES",
        help="the guidance scales to try (default: 2)",
    )  # fmt: skip
    what.add_argument(
        "--plot", action=PathFlag, metavar="FILE", help="the picture to draw, such as sweep.png"
    )
    flags.add_config(made, "tiny")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run(parser(), _call, argv)


def _call(args: argparse.Namespace) -> None:
    from show1_jax.media import check_figure
    from show1_jax.shapes.sweep import plot, print_table, sweep

    if args.plot:
        check_figure(args.plot)
    found = sweep(
        args.config,
        flags.checkpoint(args),
        args.count,
        args.seed,
        solvers=args.solvers,
        steps=args.steps,
        guidance=args.guidance,
    )
    print_table(found)
    if args.plot:
        plot(found, args.plot)
