import collections
import hashlib
import itertools

import numpy as np
import pytest

from show1_jax.data import moving_shapes as shapes
from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.data.pipeline import open_split
from show1_jax.errors import InputError

EVERY = shapes.combinations()


def scenes(count, seed=0):
    """Different combinations with random places and speeds."""
    rng = np.random.default_rng(seed)
    return [shapes.random_scene(EVERY[i], rng) for i in rng.permutation(len(EVERY))[:count]]


def coverage(scene, video):
    """How much of each pixel is the shape's colour rather than the background's."""
    background = np.array(shapes.BACKGROUNDS[scene.combination.background], float)
    contrast = np.array(shapes.COLORS[scene.combination.color]) - background
    return (video - background) @ contrast / (contrast @ contrast)


def centroids(mask):
    """Measured centroids in heights from the frame's centre, `(frames, 2)`."""
    height, width = mask.shape[1:]
    x = (np.arange(width) + 0.5 - width / 2) / height
    y = (np.arange(height) + 0.5 - height / 2) / height
    area = mask.sum(axis=(1, 2))
    return np.stack([(mask * x).sum((1, 2)), (mask * y[:, None]).sum((1, 2))], -1) / area[:, None]


def test_keyframes_are_every_fourth_frame():
    for scene in scenes(6):
        keyframes = shapes.render(scene, 8, 40, 64)
        np.testing.assert_array_equal(keyframes, shapes.render(scene, 29, 40, 64)[::4])


@pytest.mark.parametrize(("height", "width"), [(10, 16), (20, 32), (40, 64)])
def test_every_resolution_shows_the_same(height, width):
    scale = 160 // height
    for scene in scenes(8):
        large = shapes.render(scene, 3, 160, 256).astype(float)
        small = large.reshape(3, height, scale, width, scale, 3).mean(axis=(2, 4))
        error = np.abs(small - shapes.render(scene, 3, height, width))
        assert error.max() < 12
        assert error.mean() < 0.2


def test_a_wider_frame_shows_more_background_at_both_sides():
    for scene in scenes(4):
        wide, narrow = shapes.render(scene, 2, 320, 576), shapes.render(scene, 2, 320, 512)
        np.testing.assert_array_equal(wide[:, :, 32:-32], narrow)
        assert (wide[:, :, :32] == shapes.BACKGROUNDS[scene.combination.background]).all()


def test_size_place_direction_and_speed_are_as_documented():
    for scene in scenes(40):
        mask = coverage(scene, shapes.render(scene, 8, 80, 128))
        side = np.sqrt(mask.sum(axis=(1, 2))) / 80
        # If part of the shape were out of sight, its area would be too small.
        diameter = side / np.sqrt(shapes.area(scene.combination.shape))
        np.testing.assert_allclose(diameter, shapes.SIZES[scene.combination.size], rtol=0.01)
        measured = centroids(mask)
        times = np.linspace(0, shapes.DURATION, 8)
        np.testing.assert_allclose(measured, scene.centroid(times), atol=2e-3)
        velocity = (measured[-1] - measured[0]) / shapes.DURATION
        assert np.hypot(*velocity) == pytest.approx(scene.speed, rel=0.02)
        heading = np.rint(velocity / np.abs(velocity).max()).astype(int)
        assert tuple(heading) == shapes.DIRECTIONS[scene.combination.direction]


def test_shapes_stay_inside_the_frame():
    for scene in scenes(len(EVERY)):
        (left, top), (right, bottom) = shapes._extent(scene.combination)
        path = scene.centroid([0, shapes.DURATION])
        x, y = path[:, 0], path[:, 1]
        assert x.min() + left >= -0.8
        assert x.max() + right <= 0.8
        assert y.min() + top >= -0.5
        assert y.max() + bottom <= 0.5


def test_paths_are_near_the_centre_and_most_of_what_fits():
    shares = []
    for scene in scenes(len(EVERY)):
        low, high = shapes._extent(scene.combination)
        path = scene.centroid([0, shapes.DURATION])
        travel = np.abs(path[1] - path[0])
        shares.append(np.max(travel / (np.array([1.6, 1]) - (high - low))))
        assert np.abs(path.mean(axis=0)).max() <= 0.1
    assert 0.6 <= min(shares) < 0.61
    assert 0.89 < max(shares) <= 0.9


def test_colours_are_exactly_those_of_the_palette():
    for scene in scenes(12):
        video = shapes.render(scene, 4, 40, 64)
        mask = coverage(scene, video)
        background = shapes.BACKGROUNDS[scene.combination.background]
        color = shapes.COLORS[scene.combination.color]
        for frame, (x, y) in zip(video, centroids(mask) * 40 + [32, 20], strict=True):
            assert tuple(frame[int(y), int(x)]) == color
        # Of the pixels that are not background, antialiased ones are the fewer.
        inside = (video == color).all(-1).sum()
        plain = (video == background).all(-1).sum()
        assert inside + plain > 0.9 * mask.size


def test_the_area_of_a_shape_is_that_of_its_drawing():
    for shape in shapes.SIDES:
        combination = shapes.Combination("large", "red", shape, "left", "black")
        drawn = shapes.coverage(combination, 100, np.arange(-50, 50), np.arange(-50, 50))
        expected = shapes.area(shape) * (100 * shapes.SIZES["large"]) ** 2
        assert drawn.sum() == pytest.approx(expected, rel=0.005)


def test_the_three_shapes_fill_their_bounding_boxes_differently():
    fill = {}
    for shape in shapes.SIDES:
        scene = shapes.Scene(
            shapes.Combination("large", "red", shape, "left", "black"), 0.3, 0.0, 0.1
        )
        mask = coverage(scene, shapes.render(scene, 1, 160, 256))[0]
        box = np.ptp(np.argwhere(mask > 0.5), axis=0) + 1
        fill[shape] = mask.sum() / box.prod()
    expected = {"square": 1, "circle": np.pi / 4, "triangle": 1 / 2}
    assert fill == pytest.approx(expected, rel=0.05)


def test_captions_name_every_attribute_and_no_two_are_the_same():
    words = collections.defaultdict(set)
    for combination in EVERY:
        for template in range(len(shapes.TEMPLATES)):
            text = shapes.caption(combination, template)
            words[text].add(combination)
            assert all(value in text for value in combination)
    assert len(words) == len(EVERY) * len(shapes.TEMPLATES)
    assert all(len(meant) == 1 for meant in words.values())
    combination = shapes.Combination("small", "red", "circle", "left", "black")
    assert shapes.caption(combination) == "a small red circle moving left on a black background"


def test_a_fixed_tenth_is_held_out():
    held_out = [c for c in EVERY if shapes.held_out(c)]
    assert (len(EVERY), len(held_out)) == (864, 86)
    # Recorded: another choice would invalidate models trained with this one.
    digest = hashlib.sha256(repr(sorted(map(tuple, held_out))).encode()).hexdigest()
    assert digest.startswith("265d588c8bb50e63")
    trained = set(EVERY) - set(held_out)
    for position, values in enumerate(shapes.ATTRIBUTES.values()):
        share = collections.Counter(c[position] for c in held_out)
        for value in values:
            assert 0.4 < share[value] / (len(held_out) / len(values)) < 1.6
    # Every pair of values is seen in training, so what is new is the combination.
    pairs = {pair for c in trained for pair in itertools.combinations(enumerate(c), 2)}
    assert pairs == {pair for c in EVERY for pair in itertools.combinations(enumerate(c), 2)}


def test_the_dataset_holds_what_it_says(tmp_path):
    config = shapes.MovingShapesConfig(train=800, validation=20, held_out=90)
    builder = shapes.MovingShapes(config=config, data_dir=tmp_path)
    splits = {split: open_split(builder, split) for split in ("train", "validation", "held_out")}
    assert {split: len(records) for split, records in splits.items()} == config.clips
    seen = {
        split: collections.Counter(shapes.scene_of(record).combination for record in records)
        for split, records in splits.items()
    }
    assert len(seen["train"]) == 778
    assert max(seen["train"].values()) == 2
    assert not any(shapes.held_out(c) for c in [*seen["train"], *seen["validation"]])
    assert all(shapes.held_out(c) for c in seen["held_out"])
    assert len(seen["held_out"]) == 86
    for record in (splits["train"][i] for i in range(50)):
        scene = shapes.scene_of(record)
        captions = [shapes.caption(scene.combination, t) for t in range(len(shapes.TEMPLATES))]
        assert record["caption"].decode() in captions
    names = [record["name"] for record in splits["validation"]]
    assert len(set(names)) == 20

    clip = shapes.read(splits["train"][0], ClipSpec(8, 40, 64), None)
    np.testing.assert_array_equal(
        clip, shapes.render(shapes.scene_of(splits["train"][0]), 8, 40, 64)
    )
    window = shapes.read(splits["train"][0], ClipSpec(8, 40, 64, fps=7.5), None)
    assert window.shape == (8, 40, 64, 3)
    with pytest.raises(UnusableClip, match=r"too short: 3\.73 s where 7\.00 s"):
        shapes.read(splits["train"][0], ClipSpec(8, 40, 64, fps=1), None)
    with pytest.raises(InputError, match="splits are train, validation, held_out"):
        open_split(builder, "test")


def test_an_empty_split_is_refused():
    with pytest.raises(InputError, match="at least 1 clip, not 0, "):
        shapes.MovingShapesConfig(train=0)
