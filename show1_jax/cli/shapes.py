"""`python -m show1_jax.shapes`: how well a cascade trained on moving shapes follows prompts."""

import argparse
from collections.abc import Sequence

from etils.epath import Path

from show1_jax.cli import flags
from show1_jax.cli.flags import MAX_SEED, PathFlag
from show1_jax.cli.program import Parser, run
from show1_jax.errors import UsageError

DESCRIPTION = """\
Measure how well a model trained on moving shapes does what its prompts say.

Samples prompts whose combinations of attributes are held out of training, and prints for each stage
how often its clips show the size, color, shape, direction and background that were asked for,
measured from their pixels. Settings are chosen by the split "validation"; "test" and "looks"
measure what was chosen."""
EXAMPLES = """\
  %(prog)s --count 200 --out DIR                               # of the embedded checkpoint
  %(prog)s --checkpoint runs/tiny/checkpoint --stages keyframes
  %(prog)s --checkpoint runs/tiny/checkpoint --split test      # or looks; not the embedded one
  %(prog)s --count 200 --empty                                 # without text: as good as guessing
  %(prog)s --count 200 --swap                                  # one word swapped at the same seed
  %(prog)s --count 20 --alone                                  # each stage on true clips
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(("python -m show1_jax.shapes",), "[flags]", DESCRIPTION, EXAMPLES)
    what = made.add_argument_group("what to measure")
    flags.add_checkpoint(what)
    what.add_argument(
        "--count", type=flags.whole(1), default=200, metavar="N", help="prompts (default: 200)"
    )
    what.add_argument(
        "--seed", type=flags.whole(0, MAX_SEED), default=0, metavar="N",
        help="decides the prompts; their random seeds count up from it (default: 0)",
    )  # fmt: skip
    what.add_argument(
        "--split", choices=("validation", "test", "looks"), default="validation",
        help="which prompts: of the combinations that settings are chosen by (the default), or "
        "kept for the test, or of looks that training shows in no direction; a model trained on "
        "moving_shapes older than version 6.0.0, as the embedded one is, was shown those of test "
        "and looks",
    )  # fmt: skip
    what.add_argument(
        "--stages", type=flags.listed, metavar="NAMES",
        help="the stages to run (default: all that the checkpoint has); --stages= only judges OUT",
    )  # fmt: skip
    flags.add_sampling(what)
    other = made.add_argument_group("other questions")
    other.add_argument(
        "--empty", action="store_true",
        help="ask for nothing: accuracies should fall to those of guessing",
    )  # fmt: skip
    other.add_argument(
        "--swap", action="store_true",
        help="sample each prompt again with one word swapped: only that should change",
    )  # fmt: skip
    other.add_argument(
        "--alone", action="store_true",
        help="give each stage true clips to start from, and compare it with a simple filter",
    )  # fmt: skip
    results = made.add_argument_group("results")
    results.add_argument(
        "--out", action=PathFlag, metavar="DIR",
        help="keep results there, to go on from later (default: they are not kept)",
    )  # fmt: skip
    results.add_argument(
        "--sheet", action=PathFlag, metavar="FILE",
        help="the contact sheet (default: OUT/sheet.png or outputs/evaluation.png)",
    )  # fmt: skip
    flags.add_config(made, "tiny")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run(parser(), _call, argv)


def _call(args: argparse.Namespace) -> None:
    if args.alone and (args.empty or args.swap or args.out or args.sheet):
        raise UsageError("--alone goes without --empty, --swap, --out and --sheet")
    from show1_jax.shapes.alone import evaluate_alone
    from show1_jax.shapes.evaluation import evaluate

    given = (args.config, flags.checkpoint(args), args.count, args.seed)
    if args.alone:
        how = {"overrides": flags.overrides(args), "split": args.split}
        evaluate_alone(*given, stages=args.stages, **how)
        return
    sheet = args.out / "sheet.png" if args.out else Path("outputs") / "evaluation.png"
    evaluate(
        *given,
        out=args.out,
        sheet=args.sheet or sheet,
        stages=args.stages,
        overrides=flags.overrides(args),
        empty=args.empty,
        swapped=args.swap,
        split=args.split,
    )
