"""Reads the released JSON configurations strictly."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from show1_jax.errors import InputError


def parse_json(text: str | bytes) -> Any:
    """Parses JSON.

    Raises:
      ValueError: if it is damaged, or nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Fields:
    """A JSON object of which every key must be read, checked or ignored explicitly.

    An unknown key could change what the network computes, so `done` rejects it.
    """

    def __init__(self, config: Mapping[str, Any], where: str):
        self._left = {k: v for k, v in config.items() if not k.startswith("_")}
        self.where = where

    def take(self, key: str, default: Any) -> Any:
        """Returns the value of `key`, or `default` if the file does not have it."""
        return self._left.pop(key, default)

    def choice(self, key: str, default: Any, options: Collection[Any]) -> Any:
        """Like `take`, but raises InputError unless the value is one of `options`."""
        value = self.take(key, default)
        if value not in tuple(options):  # the value may be a list, which is not hashable
            known = ", ".join(repr(option) for option in options)
            raise InputError(f"{self.where}: {key} is {value!r}, which is not one of {known}")
        return value

    def expect(self, **only: Any) -> None:
        """Checks keys of which only one value is implemented, or those in a tuple."""
        for key, value in only.items():
            allowed = value if isinstance(value, tuple) else (value,)
            self.choice(key, allowed[0], allowed)

    def ignore(self, *keys: str) -> None:
        """Ignores keys that do not change what is computed."""
        for key in keys:
            self._left.pop(key, None)

    def null_is_default(self, *keys: str) -> None:
        """Treats those of `keys` whose value is null as missing."""
        for key in keys:
            if self._left.get(key, 0) is None:
                del self._left[key]

    def done(self) -> None:
        """Raises InputError if keys are left."""
        if self._left:
            raise InputError(
                f"{self.where}: unknown configuration key(s) {', '.join(sorted(self._left))}"
            )
