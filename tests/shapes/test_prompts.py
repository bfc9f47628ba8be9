import collections

import pytest

from show1_jax.shapes.moving_shapes import ATTRIBUTES, TEMPLATES, caption, split_of
from show1_jax.shapes.prompts import SPLITS, difference, draw, swap


@pytest.mark.parametrize(("split", "count"), [("validation", 86), ("test", 86), ("looks", 96)])
def test_prompts_are_of_the_split_that_is_asked_for(split, count):
    items = draw(count, 0, split)
    assert {split_of(item.combination) for item in items} == {split}
    assert len({item.combination for item in items}) == count
    assert split in SPLITS


def test_prompts_are_held_out_varied_and_decided_by_the_seed():
    items = draw(200, seed=3)
    assert items == draw(200, seed=3)
    assert items[:20] == draw(20, seed=3)
    assert items != draw(200, seed=4)
    assert {split_of(item.combination) for item in items} == {"validation"}
    # Recorded: figures of a seed are of these prompts.
    assert (
        items[0].prompt
        == "a red circle of large size drifts up and to the right in front of a black background"
    )
    # Every combination before any again.
    assert len({item.combination for item in items[:86]}) == 86
    assert {item.template for item in items} == set(range(len(TEMPLATES)))
    assert [item.seed for item in items] == list(range(3, 203))
    assert items[0].prompt == caption(items[0].combination, items[0].template)
    assert max(item.seed for item in draw(3, seed=2**32 - 1)) == 2**32 - 1


def test_a_swap_changes_exactly_one_attribute():
    items = draw(200, seed=0)
    swapped = swap(items, seed=0)
    assert swapped == swap(items, seed=0)
    changed = collections.Counter()
    for item, other in zip(items, swapped, strict=True):
        assert item[1:] == other[1:]
        (name,) = difference(item.combination, other.combination)
        assert getattr(other.combination, name) in ATTRIBUTES[name]
        assert getattr(other.combination, name) in other.prompt
        changed[name] += 1
    assert changed == dict.fromkeys(ATTRIBUTES, 40)
