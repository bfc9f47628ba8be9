"""Checks of configs. A config file is a program, and may return anything."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from show1_jax.errors import InputError

# Sections that `build` turns into dataclasses. They may lack fields that have a default.
DATACLASSES = re.compile(
    r"\.(mesh|unet|solver|schedule|noise_schedule|translation\.vae|text\.\w+)$"
)
OPTIONAL = ("train",)  # neither sampling nor customizing reads it
# JAX has 32 bits for integers.
MIN_INTEGER, MAX_INTEGER = -(2**31), 2**32 - 1

T = TypeVar("T")


def check_config(config: Any, like: ConfigDict, where: str = "config") -> None:
    """Checks that a config has the settings of a valid one, with values of the same types.

    Args:
      config: what a config file returned.
      like: a valid config.
      where: name of the config in error messages.

    Raises:
      InputError: if a setting is missing, has another type, or is a number that is not finite.
    """
    if not isinstance(config, ConfigDict):
        raise InputError(f"{where} is {config!r:.40}, but must be a ConfigDict")
    for key, known in like.items():
        name = f"{where}.{key}"
        if key in config:
            _check(config[key], known, name)
        elif key not in OPTIONAL and not DATACLASSES.search(where):
            raise InputError(f"{name} is missing; copy a config from configs/ and change it")


def _check(value: Any, known: Any, name: str) -> None:
    if known is None:  # any type will do
        return
    if isinstance(known, ConfigDict):
        check_config(value, known, name)
        return
    if isinstance(known, tuple | list):
        if not isinstance(value, tuple | list):
            raise InputError(f"{name} is {value!r:.40}, but must be a value like {known!r:.40}")
        for each in value if known else ():
            _check(each, known[0], name)
        return
    kinds = (int, float) if isinstance(known, float) else type(known)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(known, bool):
        raise InputError(f"{name} is {value!r:.40}, but must be a value like {known!r:.40}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}, but must be finite")
    if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
        raise InputError(
            f"{name} is {value!r:.40}, but must be between {MIN_INTEGER} and {MAX_INTEGER}"
        )
    if isinstance(value, str) and ("\0" in value or not _writable(value)):
        raise InputError(f"{name} is {value!r:.40}, which is not valid text")


def _writable(text: str) -> bool:
    """Returns whether a text can be encoded as UTF-8, or came as bytes of a path."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def build(kind: type[T], section: Mapping[str, Any], where: str) -> T:
    """Builds a dataclass from a section of a config.

    Args:
      kind: the dataclass.
      section: values of its fields. Fields that have a default may be missing.
      where: name of the section in error messages.

    Raises:
      InputError: if a key is not a field, a field is missing, or the dataclass refuses a value.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(section) - set(fields)):
        raise InputError(
            f"config.{where} has no setting {unknown[0]!r}; its settings are {', '.join(fields)}"
        )
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if missing := sorted(needed - set(section)):
        raise InputError(f"config.{where}.{missing[0]} is missing")
    return kind(**section)
