"""`show1-app`, which is also `python -m show1_jax.app`: the page and the HTTP service."""

import argparse
import importlib.util
import os
from collections.abc import Sequence

from etils.epath import Path

from show1_jax.cli import flags
from show1_jax.cli.flags import PathFlag
from show1_jax.cli.program import Parser, run
from show1_jax.errors import InputError

EXAMPLES = """\
  %(prog)s
  %(prog)s --config show1 --checkpoint checkpoints/show1 --config.batch_size=4
  %(prog)s --host 0.0.0.0 --token SECRET
"""
NEEDED = ("fastapi", "fastapi_offline", "gradio", "uvicorn", "prometheus_client")
TOKEN = "SHOW1_TOKEN"


def parser() -> Parser:
    """The command line."""
    made = Parser(
        ("show1-app", "python -m show1_jax.app"),
        "[flags]",
        "Make videos in the browser, and over HTTP (extra app).\n\n"
        "What was asked for is kept in the output folder, and made even after a restart.",
        EXAMPLES,
    )
    where = made.add_argument_group("where")
    where.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="the address to listen at (default: 127.0.0.1, this machine alone)",
    )  # fmt: skip
    where.add_argument(
        "--port", type=flags.whole(0, 65535), default=7860, metavar="N",
        help="0 for any that is free (default: 7860)",
    )  # fmt: skip
    where.add_argument(
        "--out", action=PathFlag, default=Path("outputs"), metavar="DIR",
        help="the output folder (default: outputs)",
    )  # fmt: skip
    limits = made.add_argument_group("who may do what")
    limits.add_argument(
        "--token", default=None, metavar="TEXT",
        help=f"what clients must show (default: the environment's {TOKEN}, or nothing)",
    )  # fmt: skip
    limits.add_argument(
        "--max_queue", type=flags.whole(1), default=100, metavar="N",
        help="how many videos may wait; others are refused (default: 100)",
    )  # fmt: skip
    limits.add_argument(
        "--max_upload", type=flags.whole(1), default=512, metavar="MIB",
        help="the largest adapter (default: 512)",
    )  # fmt: skip
    how = made.add_argument_group("how videos are made")
    flags.add_checkpoint(how)
    flags.add_sampling(how)
    flags.add_config(made, "tiny")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run(parser(), _call, argv)


def _call(args: argparse.Namespace) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'{missing[0]} is not installed: pip install "show1-jax[app]"')
    config, checkpoint = args.config, flags.checkpoint(args)
    flags.check_stages(args)
    from show1_jax.app.server import serve
    from show1_jax.generate import prepare

    checkpoints = prepare(config, checkpoint, flags.overrides(args))
    serve(
        config,
        checkpoints,
        out=args.out or Path("outputs"),
        host=args.host,
        port=args.port,
        token=os.environ.get(TOKEN, "") if args.token is None else args.token,
        max_queue=args.max_queue,
        max_upload=args.max_upload * 2**20,
    )
