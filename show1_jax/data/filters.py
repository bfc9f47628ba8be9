"""Which clips of a dataset to use, by numbers of their metadata."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from show1_jax.data.table import ENDS, Table
from show1_jax.errors import InputError

CAPTION_LENGTH = "caption_length"
MAX_LISTED = 40


@dataclasses.dataclass(frozen=True)
class Filter:
    """A range, both ends included.

    Attributes:
      field: of the metadata, or `CAPTION_LENGTH`, the number of characters.
      low: -inf for no limit.
      high: inf for no limit.
    """

    field: str
    low: float
    high: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Which values are within the range; NaN is not."""
        return (values >= self.low) & (values <= self.high)

    def __str__(self) -> str:
        """For messages."""
        low = "" if self.low == -math.inf else f"{self.low:g}"
        high = "" if self.high == math.inf else f"{self.high:g}"
        return f"{low}..{high}"


def read_filters(section: Mapping[str, Any], where: str) -> tuple[Filter, ...]:
    """Checks the filters of a config.

    Args:
      section: by field a pair (low, high), of which either may be None.
      where: the section is in the config, for messages.

    Raises:
      InputError: if a value is not such a pair, or nothing is within the range.
    """
    filters = []
    for field, given in section.items():
        name = f"{where}.{field}"
        pair = list(given) if isinstance(given, tuple | list) else []
        if len(pair) != 2 or not all(value is None or _is_number(value) for value in pair):
            raise InputError(f"{name} is {given!r:.40}, but must be a range such as (2, 60)")
        low = -math.inf if pair[0] is None else float(pair[0])
        high = math.inf if pair[1] is None else float(pair[1])
        if low > high:
            raise InputError(f"{name} is {tuple(pair)}, which no number is within")
        filters.append(Filter(field, low, high))
    return tuple(filters)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def find_field(field: str, fields: Mapping[str, np.ndarray], where: str) -> str:
    """The name of a field that may lack the sections that it is in.

    Of several, the one in the fewest sections, and the first of those, so that `duration` is
    `video_metadata/format/duration` rather than that of a stream.

    Raises:
      InputError: if there is none.
    """
    found = [name for name in fields if name == field or name.endswith(f"/{field}")]
    if not found:
        names = sorted(fields)
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        listed = ", ".join([CAPTION_LENGTH, *names[:MAX_LISTED]])
        raise InputError(f"{where} has no field {field!r}; its fields are {listed}{more}")
    return min(found, key=lambda name: (name.count("/"), name))


def kept(
    filters: Sequence[Filter], index: Table, fields: Mapping[str, np.ndarray], where: str
) -> tuple[np.ndarray, list[str]]:
    """Which clips of an index pass filters, and a line for each that says how many it removes.

    Args:
      filters: to apply one after the other.
      index: of the clips.
      fields: of its metadata.
      where: the clips are, for messages.

    Raises:
      InputError: if there is no such field, or no clip is left.
    """
    mask = np.ones(len(index.columns["source"]), bool)
    lines = []
    for each in filters:
        if each.field == CAPTION_LENGTH:
            name, passed = each.field, _any_caption(each, index)
        else:
            name = find_field(each.field, fields, where)
            passed = each(fields[name])
        before = np.count_nonzero(mask)
        mask &= passed
        left = np.count_nonzero(mask)
        lines.append(f"{where}: {name} in {each} removes {before - left:,} of {before:,} clips")
        if not left:
            raise InputError(f"{'; '.join(lines)}; widen the filters")
    return mask, lines


def _any_caption(each: Filter, index: Table) -> np.ndarray:
    """Which clips have a caption of a length within the range."""
    passed = each(index.columns["caption.characters"])
    ends = index.columns["captions" + ENDS]
    return np.logical_or.reduceat(passed, np.concatenate([[0], ends[:-1]]))
