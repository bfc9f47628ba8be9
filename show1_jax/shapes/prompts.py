"""Prompts of combinations that a model was not trained on."""

from typing import NamedTuple

import numpy as np

from show1_jax.shapes.scenes import (
    ATTRIBUTES,
    SPEEDS,
    TEMPLATES,
    Combination,
    caption,
    combinations,
    motions,
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

    Each has a random motion; a third of them name a speed.

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
    rng = np.random.default_rng((seed, 4))
    items = []
    for index, template in enumerate(templates):
        one = allowed[order[index % len(order)]]
        motion = str(rng.choice(motions(one.direction)))
        speed = str(rng.choice(list(SPEEDS))) if rng.integers(2) else ""
        own = one._replace(motion=motion, speed=speed)
        items.append(Item(own, int(template), (seed + index) % 2**32))
    return items


def swap(items: list[Item], seed: int) -> list[Item]:
    """Changes one attribute of each item, every attribute in turn."""
    rng = np.random.default_rng((seed, 2))
    swapped = []
    for index, item in enumerate(items):
        # A word for the speed that is not there cannot be swapped.
        own = [name for name in Combination._fields if getattr(item.combination, name)]
        attribute = own[index % len(own)]
        others = [
            item.combination._replace(**{attribute: value})
            for value in ATTRIBUTES[attribute]
            if value != getattr(item.combination, attribute)
        ]
        others = [one for one in others if one.motion in motions(one.direction)]
        # A speed that is not named would make no difference.
        others = [one for one in others if attribute != "speed" or one.speed]
        swapped.append(item._replace(combination=others[rng.integers(len(others))]))
    return swapped
