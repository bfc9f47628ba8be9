"""Prompts of combinations that a model was not trained on."""

from typing import NamedTuple

import numpy as np

from show1_jax.shapes.moving_shapes import (
    ATTRIBUTES,
    TEMPLATES,
    Combination,
    caption,
    combinations,
    split_of,
)


class Item(NamedTuple):
    """A clip to sample: what it should show, the template of its caption, and its seed."""

    combination: Combination
    template: int
    seed: int

    @property
    def prompt(self) -> str:
        """The caption."""
        return caption(self.combination, self.template)


# The splits that are held out of training, and their descriptions in reports.
SPLITS = {
    "validation": "86 combinations that settings were chosen by",
    "test": "86 combinations that no setting was chosen by",
    "looks": "12 looks that no setting was chosen by",
}


def draw(count: int, seed: int, split: str = "validation") -> list[Item]:
    """Draws items of held-out combinations. Combinations repeat only after all have occurred.

    A larger `count` with the same seed starts with the same items.

    Args:
      count: number of items.
      seed: decides combinations and templates. It is the seed of the first item; each next item's
        seed is larger by one.
      split: name in `SPLITS` that the combinations are from.
    """
    allowed = [combination for combination in combinations() if split_of(combination) == split]
    order = np.random.default_rng((seed, 0)).permutation(len(allowed))
    templates = np.random.default_rng((seed, 1)).integers(len(TEMPLATES), size=count)
    return [
        Item(allowed[order[index % len(order)]], int(template), (seed + index) % 2**32)
        for index, template in enumerate(templates)
    ]


def swap(items: list[Item], seed: int) -> list[Item]:
    """Changes one attribute of each item, every attribute in turn."""
    rng = np.random.default_rng((seed, 2))
    swapped = []
    for index, item in enumerate(items):
        attribute = Combination._fields[index % len(Combination._fields)]
        old = getattr(item.combination, attribute)
        others = [value for value in ATTRIBUTES[attribute] if value != old]
        changed = item.combination._replace(**{attribute: others[rng.integers(len(others))]})
        swapped.append(item._replace(combination=changed))
    return swapped


def difference(one: Combination, other: Combination) -> list[str]:
    """Returns the names of the attributes that differ."""
    return [name for name, a, b in zip(Combination._fields, one, other, strict=True) if a != b]
