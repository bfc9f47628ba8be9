"""How programs read their command line, and how they end.

Exit statuses: 0 on success and after `--help`, 2 for a wrong command line, 1 for what else is wrong
with what the user gave, 130 after Ctrl-C, 143 if the machine is taken away. Errors are one line.
"""

import argparse
import contextlib
import difflib
import faulthandler
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from show1_jax import _version
from show1_jax.errors import InputError, Preempted, UsageError
from show1_jax.paths import in_bucket

# What Orbax's other reads and writes of arrays report when one of them has failed.
OVERTAKEN = "Event loop is closed|was never awaited|Encountered error while reading array index"
MAX_FLAG_WIDTH = 26  # columns before the help of a flag
ABOUT = "about"


class Parser(argparse.ArgumentParser):
    """`argparse` with whole flags only, errors as exceptions, and `--config.KEY=VALUE`."""

    def __init__(
        self, names: Sequence[str], usage: str, description: str, examples: str = ""
    ) -> None:
        """Makes a parser with `--help` and `--version`.

        Args:
          names: how the program can be started; the first unless `sys.argv` has another.
          usage: what stands after its name.
          description: what it does.
          examples: lines for the end of `--help`, with `%(prog)s` for its name.
        """
        called = os.path.basename(sys.argv[0])
        name = called if called in names else names[0]
        super().__init__(
            name,
            f"{name} {usage}",
            description,
            f"examples:\n{examples}" if examples else None,
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.default_config = ""  # of a program that has --config
        about = self.add_argument_group(ABOUT)
        about.add_argument("-h", "--help", action="help", help="print this and exit")
        version = f"{name} {_version.__version__}"
        about.add_argument(
            "--version", action="version", version=version, help="print the version and exit"
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Reads a command line.

        `config` is the config, `changed` the values that flags gave it by their keys, and
        `config_flags` the flags that make it.

        Raises:
          UsageError: if it is wrong.
          InputError: if a config file is.
        """
        own, changes = _split(arguments)
        args, unknown = self.parse_known_args(own)
        if changes and not self.default_config:
            unknown = [changes[0][0], *unknown]
        if unknown:
            raise UsageError(self._unknown(unknown[0]))
        if self.default_config:
            # Here, so that wrong flags are told before it is imported.
            from show1_jax.config_files import load_config

            file = self.default_config if args.config is None else args.config
            args.config, args.changed = load_config(file, [each for one in changes for each in one])
            args.config_flags = [f"--config={file}", *("=".join(one) for one in changes)]
        return args

    def format_help(self) -> str:
        """The help; what is about the program itself stands last."""
        self._action_groups.sort(key=lambda group: group.title == ABOUT)
        return super().format_help()

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises UsageError instead of exiting."""
        message = re.sub(r"^argument (\S+?)(/\S+)?: ", r"\1: ", message)
        raise UsageError(f"{message}; see --help")

    def _unknown(self, text: str) -> str:
        if not text.startswith("-"):
            takes = any(not action.option_strings for action in self._actions)
            return f"{text!r} is {'one argument too many' if takes else 'not a flag'}; see --help"
        flag = text.partition("=")[0]
        known = [name for name in self._option_string_actions if "=" not in name]
        near = difflib.get_close_matches(f"--{flag.lstrip('-')}", known, 1)
        return f"there is no flag {flag}; " + (f"did you mean {near[0]}?" if near else "see --help")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=MAX_FLAG_WIDTH)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The flags of a program, and those of its config, each with its value if that is apart."""
    own: list[str] = []
    changes: list[tuple[str, ...]] = []
    left = list(arguments)
    while left:
        text = left.pop(0)
        if not re.match(r"--(no)?config\.", text):
            own.append(text)
        elif "=" in text or not left or left[0].startswith("--"):
            changes.append((text,))
        else:
            changes.append((text, left.pop(0)))
    return own, changes


def run(
    parser: Parser,
    call: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Reads a command line and calls the program.

    Args:
      parser: reads it.
      call: the program; returns its exit status, or None for 0.
      argv: the arguments; None for those of this process, whose log and hooks are then the
        program's.

    Returns:
      The exit status.
    """
    if argv is None:
        _own_process()
    try:
        with _plain_warnings():  # before a config imports what logs in its own way
            try:
                args = parser.parse(sys.argv[1:] if argv is None else argv)
            except SystemExit as ended:  # --help and --version
                return int(ended.code or 0)
            return call(args) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return _leave(2 if isinstance(error, UsageError) else 1, argv is None)
    except OSError as error:
        # Whatever is asked about a path in a bucket, if only whether it is there, may fail.
        if not in_bucket(str(error.filename)):
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
        return _leave(1, argv is None)
    except Preempted as preempted:
        print(preempted, file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return _leave(130, argv is None)


def _own_process() -> None:
    faulthandler.enable()
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = unraisable


def unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Reports what cannot be raised, except Orbax's reads that a damaged one overtook."""
    if not re.search(OVERTAKEN, str(found.exc_value)):
        sys.__unraisablehook__(found)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Prints what is logged as lines, without absl's time, thread and line of the source."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    handler.addFilter(_of_interest)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _of_interest(record: logging.LogRecord) -> bool:
    """Not Orbax, which narrates every array and what it raises, nor TFDS on its settings."""
    return not any(name in record.pathname for name in ("orbax", "tensorflow_datasets"))


def _leave(status: int, own: bool) -> int:
    """Returns the status, or exits with it at once where something would wait.

    Other processes of a run wait for this one. If the process is the program's `own`, Python waits
    for its threads at the end; those that write to a silent bucket try for a minute.
    """
    others = set(threading.enumerate()) - {threading.main_thread()}
    waits = own and any(not thread.daemon for thread in others)
    if waits or ("jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()):
        sys.stdout.flush()
        os._exit(status)
    return status
