"""Whether a config is one: a config file is a program, and what it returns may be anything."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from show1_jax.errors import InputError

# Sections whose keys are those of a dataclass, of which a config names some; see `build`.
DATACLASSES = re.compile(r"\.(unet|solver|schedule|noise_schedule|translation\.vae|text\.\w+)$")
OPTIONAL = ("train",)  # sampling has no use for it, nor customizing
# Whole numbers are handed to JAX, which has 32 bits of them.
SMALLEST, LARGEST = -(2**31), 2**32 - 1

T = TypeVar("T")


def check_config(config: Any, like: ConfigDict, where: str = "config") -> None:
    """Refuses a config that lacks a setting of another, or has one of another type.

    Args:
      config: what a config file returned.
      like: a good one.
      where: what to call it in messages.

    Raises:
      InputError: if there is such a setting, or a number that is not finite.
    """
    if not isinstance(config, ConfigDict):
        raise InputError(f"{where} is {config!r:.40}, not a ConfigDict with settings")
    for key, known in like.items():
        name = f"{where}.{key}"
        if key in config:
            _check(config[key], known, name)
        elif key not in OPTIONAL and not DATACLASSES.search(where):
            raise InputError(
                f"{name} is missing: begin with the config of configs/ that is nearest"
            )


def _check(value: Any, known: Any, name: str) -> None:
    if known is None:  # which says of no type
        return
    if isinstance(known, ConfigDict):
        check_config(value, known, name)
        return
    if isinstance(known, tuple | list):
        if not isinstance(value, tuple | list):
            raise InputError(f"{name} is {value!r:.40}, not like {known!r:.40}")
        for each in value if known else ():
            _check(each, known[0], name)
        return
    kinds = (int, float) if isinstance(known, float) else type(known)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(known, bool):
        raise InputError(f"{name} is {value!r:.40}, not like {known!r:.40}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}, which is not a number to compute with")
    if isinstance(value, int) and not SMALLEST <= value <= LARGEST:
        raise InputError(f"{name} is {value!r:.40}, but must be {SMALLEST} to {LARGEST}")
    if isinstance(value, str) and ("\0" in value or not _writable(value)):
        raise InputError(f"{name} is {value!r:.40}, which is no text")


def _writable(text: str) -> bool:
    """Whether a text can be written, or be a path: UTF-8, or bytes that came in a path."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def build(kind: type[T], section: Mapping[str, Any], where: str) -> T:
    """A dataclass from the section of a config that has its fields.

    Args:
      kind: the dataclass.
      section: may lack fields that have a default.
      where: what to call the section in messages.

    Raises:
      InputError: if a key is no field, a field is missing, or the dataclass refuses its values.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(section) - set(fields)):
        raise InputError(f"config.{where} has no setting {unknown[0]!r}: take {', '.join(fields)}")
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if missing := sorted(needed - set(section)):
        raise InputError(f"config.{where}.{missing[0]} is missing")
    return kind(**section)
