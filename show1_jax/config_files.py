"""`--config FILE[:ARG]` and `--config.KEY=VALUE`: from a Python file to a config."""

import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from absl import flags
from etils.epath import Path
from ml_collections import ConfigDict, config_flags

import show1_jax.configs
from show1_jax.configs import tiny
from show1_jax.configuration import check_config
from show1_jax.errors import InputError, UsageError
from show1_jax.paths import local_path

# What absl and ml_collections raise for keys and values that do not fit.
FAILURES = (flags.Error, KeyError, AttributeError, TypeError, ValueError)


def packaged() -> dict[str, Path]:
    """The config files that come with this package, by name."""
    (folder, *_) = show1_jax.configs.__path__
    files = sorted(Path(folder).glob("[!_]*.py"))
    return {file.stem: file for file in files}


def load_config(file: str, changes: Sequence[str] = ()) -> tuple[ConfigDict, dict[str, Any]]:
    """Loads a config, and changes some of its values.

    Args:
      file: a Python file, or the name of one that comes with this package; of "FILE:ARG", ARG is
        given to its `get_config`.
      changes: flags such as "--config.keyframes.steps=3".

    Returns:
      The config, locked, and what was changed, by key.

    Raises:
      InputError: if the file is broken.
      UsageError: if a change is wrong.
    """
    local_path(file)  # of which "gs://" would be the ARG
    name, *arguments = file.split(":", 1)
    config = _get_config(_find(name), arguments)
    good = tiny.get_config()
    check_config(config, good)
    config.lock()
    changed = _change(config, changes)
    try:
        check_config(config, good)
    except InputError as error:
        raise UsageError(str(error)) from None
    return config, changed


def checked_config(config: ConfigDict) -> ConfigDict:
    """A locked copy of a config that was made in Python.

    Raises:
      InputError: if it lacks a setting, or has one of another type.
    """
    check_config(config, tiny.get_config())
    own = config.copy_and_resolve_references()
    own.lock()
    return own


def _find(name: str) -> Path:
    """The file of `--config`; see `load_config`."""
    known, path = packaged(), local_path(name)
    if name in known:
        return known[name]
    # As the documentation calls them, wherever the program is started.
    if not path.exists() and path.parts[:-1] == ("configs",) and path.suffix == ".py":
        path = known.get(path.stem, path)
    if not name or not path.exists():
        hint = "" if path.suffix == ".py" else f"; give a file, or one of {', '.join(known)}"
        raise InputError(f"there is no file {name!r}{hint}")
    return path


def _get_config(path: Path, arguments: Sequence[str]) -> Any:
    """What a config file returns. Config files are programs: they raise anything."""
    try:
        module = _load(path)
        if not hasattr(module, "get_config"):
            raise InputError("the config file has no function get_config")
        return module.get_config(*arguments)
    except InputError:
        raise
    except ValueError as error:  # what it thinks of its argument
        raise InputError(_one_line(error) or "the config file raises ValueError") from None
    except SystemExit:
        raise InputError("the config file ends the program") from None
    except OSError as error:
        why = error.strerror or _one_line(error)
        raise InputError(f"the config file {path} cannot be read: {why}") from None
    except Exception as error:  # noqa: BLE001
        kind, text = type(error).__name__, _one_line(error)
        text = re.sub(r" \([\w.]+, line (\d+)\)$", r" (line \1)", text)
        raise InputError(f"the config file cannot be used: {kind}{text and ': '}{text}") from None


def _load(path: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("config_file", str(path))
    spec = importlib.util.spec_from_file_location("config_file", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["config_file"] = module
    loader.exec_module(module)
    return module


def _change(config: ConfigDict, changes: Sequence[str]) -> dict[str, Any]:
    """Changes values as ml_collections does: by their types, tuples and literals included."""
    values = flags.FlagValues()
    command = ["program", *changes]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=command)
        left = values(command)[1:]
        changed = config_flags.get_override_values(values["config"])
    except FAILURES as error:
        raise UsageError(_reason(error)) from None
    if left:
        raise UsageError(f"{left[0]!r} is not a flag; see --help")
    return changed


def _reason(error: Exception) -> str:
    """One line of an error of absl or ml_collections, which may quote others."""
    text = _one_line(error).replace("\\n", " ").replace("\\", "")
    if not isinstance(error, KeyError | AttributeError):
        return re.sub("^flag (--[^=]+)=", r"\1=", text)
    key, _, hint = text.replace('"', "'").partition(" Did you mean ")
    hint = f"; did you mean {hint.partition(' instead')[0]}?" if hint else ""
    return f"the config has no key {key.strip(chr(39))!r} there{hint}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else "").split())
