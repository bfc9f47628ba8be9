"""How command-line programs start and how they fail: one line, status 1, no traceback."""

import importlib
import logging as python_logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from show1_jax.configuration import check_config
from show1_jax.errors import InputError, Preempted
from show1_jax.paths import local_path

flags.disclaim_key_flags()  # what is defined below belongs to the program: --help shows it

# What Orbax's other reads and writes of arrays say, with nobody waiting, when one has failed.
OVERTAKEN = "Event loop is closed|was never awaited|Encountered error while reading array index"
FAILURES = (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError)


def define_config(help_text: str) -> flags.FlagHolder:
    """Defines `--config FILE`, of which `--config.KEY=VALUE` changes a value; see `run`."""
    # Without a default here: ml_collections would apply the changes to it
    # while flags are still being defined, outside of any error handling.
    return config_flags.DEFINE_config_file("config", None, help_text)


class _PathParser(flags.ArgumentParser):
    """A path; see `local_path`. None for ""."""

    def parse(self, argument: Any) -> Path | None:
        return local_path(argument) if argument else None


def define_path(name: str, help_text: str) -> flags.FlagHolder:
    """Defines a flag whose value is a `Path`, or None."""
    return flags.DEFINE(_PathParser(), name, None, help_text)


def define_checkpoint() -> flags.FlagHolder:
    """Defines `--checkpoint FOLDER`."""
    return flags.DEFINE_string(
        "checkpoint", None, "A converted checkpoint (default: the one that comes with the config)."
    )


def define_sampling() -> tuple[flags.FlagHolder, flags.FlagHolder, flags.FlagHolder]:
    """Defines `--checkpoint`, `--steps` and `--guidance`."""
    steps = flags.DEFINE_list(
        "steps", [], "Solver steps, of all stages (50) or of some (keyframes=75,translation=50)."
    )
    return (
        define_checkpoint(),
        steps,
        flags.DEFINE_list("guidance", [], "Guidance scales, likewise."),
    )


def define_aot() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines `--aot TOPOLOGY` and `--json`, which prints its table as JSON."""
    topology = flags.DEFINE_string(
        "aot", None, "Only compile, for TPUs such as v5e:4x4 that need not be here, and say what "
        "it takes (extra tpu-aot)."
    )  # fmt: skip
    return topology, flags.DEFINE_bool("json", False, "With --aot: as JSON instead of a table.")


def define_hosts() -> None:
    """Defines the flags by which several processes find each other; see `join_hosts`."""
    flags.DEFINE_string(
        "coordinator", None, "Run as one of several processes, which meet at this HOST:PORT of "
        "the first; auto: as TPU pods, GKE, SLURM and Open MPI say.",
    )  # fmt: skip
    flags.DEFINE_integer("processes", None, "With --coordinator HOST:PORT: how many there are.")
    flags.DEFINE_integer("process", None, "With --coordinator HOST:PORT: which this is, from 0.")
    flags.DEFINE_integer("join_limit", 300, "Seconds to wait for the other processes.")


def join_hosts(preemptible: bool) -> None:
    """Meets the other processes that the flags name, if any; see `hosts.join`."""
    from show1_jax.parallel import hosts  # here, so that --help does not wait for JAX

    values = flags.FLAGS
    hosts.join(values.coordinator, values.processes, values.process, values.join_limit, preemptible)


def only_compile() -> None:
    """Keeps JAX from looking for the TPU whose compiler is installed."""
    import jax

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Else one process at a time may hold the compiler, as if it were a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")


def run(main: Callable[[], None], default_config: Path) -> None:
    """Parses absl flags, calls `main`, and exits.

    Args:
      main: the program.
      default_config: what `--config` is when it is not given.
    """

    # Where the configs find each other, wherever the program is started.
    sys.path.append(str(default_config.parents[1]))

    def parse(arguments: list[str]) -> Any:
        program, *rest = ["--help" if text == "-h" else text for text in arguments]
        if not any(text.split("=")[0] in ("-config", "--config") for text in rest):
            rest = [f"--config={default_config}", *rest]
        try:
            left = _parse([program, *rest])
            # A file that cannot be loaded is reported when it is first used.
            getattr(flags.FLAGS.config, "is_locked", None)
            good = importlib.import_module(f"{default_config.parent.name}.{default_config.stem}")
            check_config(flags.FLAGS.config, good.get_config())
        # ml_collections reports unknown keys and wrong types with any of these.
        except FAILURES as error:
            text = _reason(error)
            if "no attribute 'get_config'" in text:
                text = "the config file has no function get_config"
            elif isinstance(error, KeyError | AttributeError):
                key, _, hint = text.replace('"', "'").partition(" Did you mean ")
                hint = f"; did you mean {hint.partition(' instead')[0]}?" if hint else ""
                text = f"the config has no key {key.strip(chr(39))!r} there{hint}"
            sys.exit(f"error: {text}")
        except Exception as error:  # noqa: BLE001 - config files are programs: they raise anything
            kind, text = type(error).__name__, _one_line(str(error))
            sys.exit(f"error: the config file cannot be used: {kind}{text and ': '}{text}")
        return left

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: {argv[1]!r} is not a flag; see --help")
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_logger().addFilter(_of_interest)
        # Without absl's time, thread and line of our source.
        logging.get_absl_handler().setFormatter(python_logging.Formatter("warning: %(message)s"))
        python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
        sys.unraisablehook = _unraisable
        try:
            main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            _leave(1)
        except Preempted as preempted:
            print(preempted, file=sys.stderr)
            sys.exit(143)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            _leave(130)

    app.run(guarded, flags_parser=parse)


def _parse(arguments: list[str]) -> Any:
    """Parses the flags; exits with status 0 after --help, where absl would with 1."""
    try:
        return flags.FLAGS(arguments)
    except SystemExit:
        if any(re.match("--?help", text) for text in arguments):
            sys.exit(0)
        sys.exit("error: the config file ends the program")


def _reason(error: Exception) -> str:
    """One line of an error of absl or ml_collections, which may quote others with tracebacks."""
    text = str(error.args[0] if error.args else type(error).__name__).replace("\\n", "\n")
    if "Traceback" in text or "Failed loading" in text:
        text = re.sub(r"^[\w.]+Error: ", "", text.strip().splitlines()[-1])
    text = re.sub(r"^\s*\[Errno 2\] .*: ", "there is no file ", text)
    return _one_line(text.replace("\\", ""))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _leave(status: int) -> None:
    """Exits, without waiting for other processes that wait for this one."""
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _of_interest(record: python_logging.LogRecord) -> bool:
    """Not Orbax, which narrates every array and what it raises, nor TFDS on its settings."""
    return not any(name in record.pathname for name in ("orbax", "tensorflow_datasets"))


def _unraisable(found: Any) -> None:
    """Reports what cannot be raised, except Orbax's reads that a damaged one overtook."""
    if not re.search(OVERTAKEN, str(found.exc_value)):
        sys.__unraisablehook__(found)


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, where the user has not said otherwise."""
    import jax  # here, so that --help does not wait for it

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # Without a home folder, as of a user ID that the system does not list, "~" stays.
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if cache.startswith("~"):
            logging.warning(
                "There is no home folder to keep compiled programs in: set XDG_CACHE_HOME"
            )
            return
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "show1_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
