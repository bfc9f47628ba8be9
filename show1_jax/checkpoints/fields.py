"""Strict reading of the released JSON configurations."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from show1_jax.errors import InputError


def parse_json(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
      ValueError: if it is damaged, or nested so deeply that Python cannot follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Fields:
    """A JSON object whose every key must be taken, checked or named as meaningless.

    A key that nobody asked for could change what the network computes, so
    `done` refuses it instead of converting to something slightly different.
    """

    def __init__(self, config: Mapping[str, Any], where: str):
        self._left = {k: v for k, v in config.items() if not k.startswith("_")}
        self.where = where

    def take(self, key: str, default: Any) -> Any:
        """The value of `key`, or `default` where the file does not have it."""
        return self._left.pop(key, default)

    def choice(self, key: str, default: Any, options: Collection[Any]) -> Any:
        """Like `take`, but raises InputError unless the value is one of `options`."""
        value = self.take(key, default)
        if value not in tuple(options):  # the file's may be a list, which no set can look up
            known = ", ".join(repr(option) for option in options)
            raise InputError(f"{self.where}: {key} is {value!r}, which is not one of {known}")
        return value

    def expect(self, **only: Any) -> None:
        """Checks keys for which one value alone is implemented (a tuple lists several)."""
        for key, value in only.items():
            allowed = value if isinstance(value, tuple) else (value,)
            self.choice(key, allowed[0], allowed)

    def ignore(self, *keys: str) -> None:
        """Drops keys that do not change what is computed."""
        for key in keys:
            self._left.pop(key, None)

    def null_is_default(self, *keys: str) -> None:
        """Forgets those of `keys` whose value is null."""
        for key in keys:
            if self._left.get(key, 0) is None:
                del self._left[key]

    def done(self) -> None:
        """Raises InputError if a key is left that nothing has asked for."""
        if self._left:
            raise InputError(
                f"{self.where}: unknown configuration key(s) {', '.join(sorted(self._left))}"
            )
