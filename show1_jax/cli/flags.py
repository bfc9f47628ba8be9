"""Flags that several programs have."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from show1_jax.cli.program import Parser
from show1_jax.errors import InputError, UsageError
from show1_jax.paths import as_path

MAX_SEED = 2**32 - 1


class PathFlag(argparse.Action):
    """A path on a disk or in a bucket; "" is None. Raises the InputError of `as_path`."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Stores it."""
        setattr(namespace, self.dest, as_path(values) if values else None)


def listed(text: str) -> list[str]:
    """The words of "a,b"; none of ""."""
    return [part.strip() for part in text.split(",")] if text else []


def numbers(kind: type[int] | type[float]) -> Callable[[str], list]:
    """A reader of numbers such as "5,10"."""

    def read(text: str) -> list:
        try:
            return [kind(part) for part in listed(text)]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {_such(kind)}") from None

    return read


def of_stages(kind: type[int] | type[float]) -> Callable[[str], list[str]]:
    """A reader of "20" or "keyframes=20,translation=30", which are only checked."""

    def read(text: str) -> list[str]:
        for part in listed(text):
            value = part.rpartition("=")[2]
            try:
                kind(value)
            except ValueError:
                raise argparse.ArgumentTypeError(f"{value!r} is not a number") from None
        return listed(text)

    return read


def _such(kind: type[int] | type[float]) -> str:
    return "a list of whole numbers" if kind is int else "a list of numbers"


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers within limits."""

    def read(text: str) -> int:
        limits = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"{value} is not within {limits}")
        return value

    return read


def add_config(parser: Parser, default: str, of_argument: str = "") -> None:
    """Adds `--config`; see `config.load_config`."""
    parser.default_config = default
    group = parser.add_argument_group("config")
    group.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help=f"a config file, or the name of one in configs/ (default: {default}){of_argument}",
    )
    group.add_argument(
        "--config.KEY=VALUE",
        action="store_true",
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="change one of its values, such as --config.keyframes.fps=4",
    )


def add_checkpoint(group: Any, more: str = "") -> None:
    """Adds `--checkpoint FOLDER`; see `checkpoint`."""
    group.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a converted checkpoint (default: the config's); of several, later ones override the "
        f"stages of earlier ones{more}",
    )


def checkpoint(args: argparse.Namespace) -> list[str]:
    """The checkpoints that were asked for, or the config's; none if it has none."""
    given = [folder for folder in args.checkpoint if folder]
    own = args.config.get("checkpoint")
    return given or ([own] if own else [])


def add_sampling(group: Any) -> None:
    """Adds `--steps` and `--guidance`; see `overrides`."""
    group.add_argument(
        "--steps",
        type=of_stages(int),
        default=[],
        metavar="N",
        help="solver steps of all stages, such as 50, or of some (keyframes=75,translation=50)",
    )
    group.add_argument(
        "--guidance",
        type=of_stages(float),
        default=[],
        metavar="SCALE",
        help="guidance scales, likewise",
    )


def overrides(args: argparse.Namespace) -> dict[str, Sequence[str]]:
    """What `add_sampling` reads."""
    return {"steps": args.steps, "guidance": args.guidance}


def check_stages(args: argparse.Namespace, others: Sequence[str] = ()) -> None:
    """Raises UsageError if `--stages`, `--steps` or `--guidance` name a stage that there is not.

    Args:
      args: from `add_sampling`, perhaps with `stages`.
      others: names that `--stages` may have besides.
    """
    from show1_jax.stages import by_name

    asked = [
        (name, "--stages") for name in getattr(args, "stages", None) or () if name not in others
    ]
    for flag in ("steps", "guidance"):
        texts = (text.rpartition("=")[0] for text in vars(args)[flag])
        asked += [(name, f"--{flag}") for name in texts if name]
    for name, flag in asked:
        try:
            by_name(name)
        except InputError as error:
            raise UsageError(f"{flag}: {error}") from None


def add_aot(parser: Parser) -> None:
    """Adds `--aot TOPOLOGY` and `--json`."""
    group = parser.add_argument_group("before paying for TPUs")
    group.add_argument(
        "--aot",
        metavar="TOPOLOGY",
        help="only compile, for TPUs such as v5e:4x4 (v5e:4x4*2 for two slices) that need not be "
        "here, and print what it takes of a chip (extra tpu-aot)",
    )
    group.add_argument("--json", action="store_true", help="print that as JSON, not as a table")


def add_hosts(parser: Parser) -> None:
    """Adds the flags by which several processes find each other; see `join_hosts`."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="run as one of several processes, which meet there: where the first of them runs; "
        "auto on TPU pods, GKE, SLURM and Open MPI",
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which this is, from 0")
    group.add_argument(
        "--join_limit",
        type=whole(0),
        default=300,
        metavar="SECONDS",
        help="start-up fails if they have not all joined by then (default: 300)",
    )


def join_hosts(args: argparse.Namespace, preemptible: bool) -> None:
    """Meets the other processes that the flags name, if any; see `hosts.join`."""
    from show1_jax.parallel import hosts

    hosts.join(args.coordinator, args.processes, args.process, args.join_limit, preemptible)


def read(reader: Callable[[str], Any], text: str) -> Any:
    """Reads a flag's value with a reader that raises InputError; that is a UsageError then."""
    try:
        return reader(text)
    except InputError as error:
        raise UsageError(str(error)) from None
