"""What a model is asked: prompts of combinations that it was not trained on."""

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
    """One clip to be made: what it is meant to show, in which words, and its seed."""

    combination: Combination
    template: int
    seed: int

    @property
    def prompt(self) -> str:
        """The words."""
        return caption(self.combination, self.template)


# The splits that are held out of training, and what prompts of each ask for.
SPLITS = {
    "validation": "86 combinations that settings were chosen by",
    "test": "86 combinations that no setting was chosen by",
    "looks": "12 looks that no setting was chosen by",
}


def draw(count: int, seed: int, split: str = "validation") -> list[Item]:
    """Draws items of held-out combinations, all of them before any again.

    The first of many are the same as few of the same seed.

    Args:
      count: how many.
      seed: decides combinations and words, and is the first item's own; each
        item's is one more than that of the item before.
      split: whose combinations, of `SPLITS`.
    """
    allowed = [combination for combination in combinations() if split_of(combination) == split]
    order = np.random.default_rng((seed, 0)).permutation(len(allowed))
    templates = np.random.default_rng((seed, 1)).integers(len(TEMPLATES), size=count)
    return [
        Item(allowed[order[index % len(order)]], int(template), (seed + index) % 2**32)
        for index, template in enumerate(templates)
    ]


def swap(items: list[Item], seed: int) -> list[Item]:
    """The same items, each with another value for one attribute, every attribute in turn."""
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
    """The names of the attributes that are not the same."""
    return [name for name, a, b in zip(Combination._fields, one, other, strict=True) if a != b]
