import collections
import hashlib
import itertools

import numpy as np
import pytest

from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.data.pipeline import open_split
from show1_jax.errors import InputError
from show1_jax.shapes import moving_shapes as shapes

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


def split(name):
    return [c for c in EVERY if shapes.split_of(c) == name]


# Recorded: another choice would invalidate models trained with this one.
@pytest.mark.parametrize(
    ("name", "count", "digest"),
    [
        ("train", 596, "fd95167bb2349851"),
        ("validation", 86, "265d588c8bb50e63"),
        ("test", 86, "b85f1761282eadc7"),
        ("looks", 96, "b12d5469de8cf646"),
    ],
)
def test_the_splits_are_fixed(name, count, digest):
    found = split(name)
    assert len(found) == count
    listed = repr(sorted(map(tuple, found))).encode()
    assert hashlib.sha256(listed).hexdigest().startswith(digest)


def test_the_splits_are_disjoint_and_complete():
    names = ("train", "validation", "test", "looks")
    counts = [len(split(name)) for name in names]
    assert sum(counts) == len(set(EVERY)) == 864
    assert {shapes.split_of(c) for c in EVERY} == set(names)


def test_test_and_validation_have_the_largest_and_the_smallest_hashes():
    ranked = sorted(EVERY, key=lambda c: hashlib.sha256(" ".join(c).encode()).hexdigest())
    assert set(ranked[:86]) == set(split("validation"))
    assert set(ranked[-86:]) == set(split("test"))


def test_held_out_looks_are_shown_in_no_direction_and_all_others_in_some():
    looks = {name: {shapes.look(c) for c in split(name)} for name in ("train", "looks")}
    assert len(looks["looks"]) == 12
    assert len(split("looks")) == 12 * len(shapes.DIRECTIONS)
    assert looks["train"] == {shapes.look(c) for c in EVERY} - looks["looks"]
    for name in ("validation", "test"):
        assert {shapes.look(c) for c in split(name)} <= looks["train"]


def test_what_is_held_out_has_every_word_and_training_every_pair_of_them():
    for position, values in enumerate(shapes.ATTRIBUTES.values()):
        for name in ("train", "validation", "test"):
            share = collections.Counter(c[position] for c in split(name))
            for value in values:
                assert 0.4 < share[value] / (len(split(name)) / len(values)) < 1.6
        # Of so few looks shares differ more.
        assert {c[position] for c in split("looks")} == set(values)
    # Every pair of values is seen in training, so what is new is the combination.
    pairs = {pair for c in split("train") for pair in itertools.combinations(enumerate(c), 2)}
    assert pairs == {pair for c in EVERY for pair in itertools.combinations(enumerate(c), 2)}


def test_the_dataset_holds_what_it_says(tmp_path):
    config = shapes.MovingShapesConfig(train=620, validation=90, test=90, looks=100)
    builder = shapes.MovingShapes(config=config, data_dir=tmp_path)
    splits = {name: open_split(builder, name) for name in config.clips}
    assert {name: len(records) for name, records in splits.items()} == config.clips
    for name, records in splits.items():
        seen = collections.Counter(shapes.scene_of(record).combination for record in records)
        assert set(seen) == set(split(name))
        assert max(seen.values()) == 2
    for record in (splits["train"][i] for i in range(50)):
        scene = shapes.scene_of(record)
        captions = [shapes.caption(scene.combination, t) for t in range(len(shapes.TEMPLATES))]
        assert record["caption"].decode() in captions
    names = [record["name"] for record in splits["validation"]]
    assert len(set(names)) == 90

    clip = shapes.read(splits["train"][0], ClipSpec(8, 40, 64), None)
    np.testing.assert_array_equal(
        clip, shapes.render(shapes.scene_of(splits["train"][0]), 8, 40, 64)
    )
    window = shapes.read(splits["train"][0], ClipSpec(8, 40, 64, fps=7.5), None)
    assert window.shape == (8, 40, 64, 3)
    with pytest.raises(UnusableClip, match=r"too short: 3\.73 s, but 7\.00 s"):
        shapes.read(splits["train"][0], ClipSpec(8, 40, 64, fps=1), None)
    with pytest.raises(InputError, match="splits are train, validation, test, looks"):
        open_split(builder, "held_out")


def test_an_empty_split_is_refused():
    with pytest.raises(InputError, match=r"have train 0, validation 1000, .* needs at least 1"):
        shapes.MovingShapesConfig(train=0)
