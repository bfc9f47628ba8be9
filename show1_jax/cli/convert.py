"""`show1-convert`, which is also `python -m show1_jax.convert`: from PyTorch to JAX and back."""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from show1_jax.cli.program import Parser, run
from show1_jax.errors import Preempted
from show1_jax.paths import as_path

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
DESCRIPTION = """\
Convert checkpoints between the released PyTorch layout and ours.

SRC is one released folder (it has a model_index.json) or a folder of them. DST gets the same
layout, with an Orbax checkpoint params/ in place of each network's weight files; configurations,
tokenizers and scheduler settings are copied. DST appears when all of it is written. Until then it
grows in DST.partial, from where the same command goes on if it was cut off. Text encoders that are
equal are stored once."""
EXAMPLES = """\
  %(prog)s RELEASED_FOLDERS checkpoints/show1 --verify    # PyTorch to JAX
  %(prog)s checkpoints/show1 released --to-torch          # and back
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        ("python -m show1_jax.convert", "show1-convert"), "SRC DST [flags]", DESCRIPTION, EXAMPLES
    )
    what = made.add_argument_group("folders")
    what.add_argument("src", metavar="SRC", help="a released folder, or a folder of them")
    what.add_argument("dst", metavar="DST", help="the folder to make; it must not exist yet")
    how = made.add_argument_group("conversion")
    how.add_argument("--to-torch", action="store_true", help="from Orbax back to PyTorch")
    how.add_argument(
        "--dtype", choices=DTYPES, help="cast every weight (default: keep the stored precision)"
    )
    how.add_argument(
        "--verify", action="store_true", help="read the result back and compare bit for bit"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status: 128 and more if a signal stopped it."""
    return run(parser(), _call, argv)


def _call(args: argparse.Namespace) -> int:
    src, dst = as_path(args.src), as_path(args.dst)
    import jax
    import jax.numpy as jnp

    from show1_jax.checkpoints.conversion import convert_pipelines
    from show1_jax.progress import Progress

    # Conversion is bytes in, bytes out: keep accelerators out of it.
    jax.config.update("jax_platforms", "cpu")
    dtype = jnp.dtype(DTYPES[args.dtype]) if args.dtype else None
    with _Signals() as signals:
        progress = Progress(check=signals.check)
        try:
            convert_pipelines(
                src, dst, args.to_torch, dtype, args.verify, report=_say, progress=progress
            )
        except Preempted as stopped:
            print(stopped, file=sys.stderr, flush=True)
            return 128 + (signals.number or 0)
    return 0


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
