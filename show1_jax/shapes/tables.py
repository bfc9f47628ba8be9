"""Tables of how often each attribute is right."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from show1_jax.shapes.judge import UNKNOWN, Measurement
from show1_jax.shapes.prompts import Item
from show1_jax.shapes.scenes import ATTRIBUTES, Combination, difference
from show1_jax.stages import by_name

NAMES = Combination._fields
IN_TIME = ("direction", "motion", "speed")  # what no single frame shows


def attributes_of(stage: str) -> list[str]:
    """The attributes that a stage's result can show."""
    return [name for name in NAMES if name not in IN_TIME or not by_name(stage).image]


def accuracy(
    stage: str, measured: Sequence[Measurement], wanted: Sequence[Combination]
) -> dict[str, float]:
    """Computes the share of right clips, for each attribute and for "all" attributes together.

    That of the speed is of the clips whose caption names one.
    """
    names = attributes_of(stage)
    wrong = [
        difference(seen.combination, asked) for seen, asked in zip(measured, wanted, strict=True)
    ]
    shares = {name: float(np.mean([name not in each for each in wrong])) for name in names}
    if "speed" in names:
        named = [each for each, asked in zip(wrong, wanted, strict=True) if asked.speed]
        del shares["speed"]
        if named:
            shares["speed"] = float(np.mean(["speed" not in each for each in named]))
    return shares | {"all": float(np.mean([not set(names) & set(each) for each in wrong]))}


def chance() -> dict[str, float]:
    """Computes the accuracy of guessing."""
    shares = {name: 1 / len(values) for name, values in ATTRIBUTES.items()}
    shares["speed"] = 1 / 2
    return shares | {"all": float(np.prod(list(shares.values())))}


def swap_accuracy(
    stage: str,
    before: Sequence[Measurement],
    after: Sequence[Measurement],
    items: Sequence[Item],
    swapped: Sequence[Item],
) -> dict[str, float]:
    """Measures how clips change when one word of their prompt is swapped.

    Args:
      stage: that made the clips.
      before: measurements of the clips of `items`.
      after: measurements of the clips of `swapped`.
      items: with the original words.
      swapped: with one attribute swapped.

    Returns:
      For each attribute, the share of clips that show the new word, among those in which it was
      swapped; under "all", the share among all clips; under "others", the share of the other
      attributes that are known and equal in both clips.
    """
    followed: dict[str, list[bool]] = {}
    stayed: list[bool] = []
    for one, other, item, new in zip(before, after, items, swapped, strict=True):
        (changed,) = difference(item.combination, new.combination)
        for name in attributes_of(stage):
            seen = getattr(other.combination, name)
            if name == changed:
                followed.setdefault(name, []).append(seen == getattr(new.combination, name))
            else:
                stayed.append(seen == getattr(one.combination, name) != UNKNOWN)
    shares = {name: float(np.mean(hits)) for name, hits in followed.items()}
    every = [hit for hits in followed.values() for hit in hits]
    if every:
        shares["all"] = float(np.mean(every))
    return shares | {"others": float(np.mean(stayed))}


def percent(share: float) -> str:
    """Formats a share as a percentage."""
    return f"{100 * share:.1f}"


def table(
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
    style: Callable[[float], str] = percent,
) -> str:
    """Formats numbers in aligned columns with `style`; "-" for missing ones."""
    cells = [["", *columns]]
    for name, shares in rows.items():
        cells.append([name, *(style(shares[c]) if c in shares else "-" for c in columns)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *rest in cells:
        numbers = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([f"{first:<{widths[0]}}", *numbers]))
    return "\n".join(lines)
