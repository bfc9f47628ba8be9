import collections

import pytest

from show1_jax.shapes.prompts import SPLITS, draw, swap
from show1_jax.shapes.scenes import (
    ATTRIBUTES,
    MOTIONS,
    TEMPLATES,
    caption,
    difference,
    motions,
    split_of,
)


@pytest.mark.parametrize(("split", "count"), [("validation", 86), ("test", 86), ("looks", 96)])
def test_prompts_are_of_the_split_that_is_asked_for(split, count):
    items = draw(count, 0, split)
    assert {split_of(item.combination) for item in items} == {split}
    assert len({item.combination[:5] for item in items}) == count
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
        == "a red circle of large size drifts slowly up and to the right in front of a black "
        "background"
    )
    # Every combination before any again.
    assert len({item.combination[:5] for item in items[:86]}) == 86
    assert {item.combination.motion for item in items} == set(MOTIONS)
    assert 40 < sum(bool(item.combination.speed) for item in items) < 95
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
        assert other.prompt != item.prompt
        assert other.combination.motion in motions(other.combination.direction)
        changed[name] += 1
    assert set(changed) == set(ATTRIBUTES)
    assert min(changed.values()) >= 10
