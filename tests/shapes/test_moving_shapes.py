import collections
import hashlib
import itertools

import numpy as np
import pytest

from show1_jax.configs import tiny
from show1_jax.data.clip import ClipSpec, UnusableClip
from show1_jax.data.pipeline import open_split
from show1_jax.errors import InputError
from show1_jax.shapes import drawing, moving_shapes
from show1_jax.shapes import scenes as shapes

EVERY = shapes.combinations()
FIELD = np.array([0.8, 0.5])  # its right lower corner


def scenes(count, seed=0):
    """Different combinations with random motions, places and speeds."""
    rng = np.random.default_rng(seed)
    found = []
    for index in rng.permutation(len(EVERY))[:count]:
        known = shapes.motions(EVERY[index].direction)
        motion = known[rng.integers(len(known))]
        found.append(shapes.random_scene(EVERY[index]._replace(motion=motion), rng))
    return found


def every_motion(shape="square", size="small"):
    """A scene of every motion in each direction."""
    for direction in shapes.DIRECTIONS:
        for motion in shapes.motions(direction):
            own = shapes.Combination(size, "red", shape, direction, "black", motion)
            yield shapes.random_scene(own, np.random.default_rng(len(motion)))


def places(scene, count=561):
    return scene.centroid(np.linspace(0, shapes.DURATION, count))


def coverage(scene, video):
    """How much of each pixel is the shape's colour rather than the background's."""
    background = np.array(shapes.BACKGROUNDS[scene.combination.background], float)
    contrast = scene.color - background
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
        keyframes = drawing.render(scene, 8, 40, 64)
        np.testing.assert_array_equal(keyframes, drawing.render(scene, 29, 40, 64)[::4])


@pytest.mark.parametrize(("height", "width"), [(10, 16), (20, 32), (40, 64)])
def test_every_resolution_shows_the_same(height, width):
    scale = 160 // height
    for scene in scenes(8):
        large = drawing.render(scene, 3, 160, 256).astype(float)
        small = large.reshape(3, height, scale, width, scale, 3).mean(axis=(2, 4))
        error = np.abs(small - drawing.render(scene, 3, height, width))
        assert error.max() < 12
        assert error.mean() < 0.2


def test_a_wider_frame_shows_more_background_at_both_sides():
    for scene in scenes(4):
        wide, narrow = drawing.render(scene, 2, 320, 576), drawing.render(scene, 2, 320, 512)
        np.testing.assert_array_equal(wide[:, :, 32:-32], narrow)
        assert (wide[:, :, :32] == shapes.BACKGROUNDS[scene.combination.background]).all()


def test_size_and_place_are_as_documented():
    for scene in scenes(40):
        mask = coverage(scene, drawing.render(scene, 8, 80, 128))
        side = np.sqrt(mask.sum(axis=(1, 2))) / 80
        # If part of the shape were out of sight, its area would be too small.
        diameter = side / np.sqrt(shapes.area(scene.combination.shape))
        np.testing.assert_allclose(diameter, shapes.SIZES[scene.combination.size], rtol=0.015)
        np.testing.assert_allclose(centroids(mask), places(scene, 8), atol=2e-3)


def test_every_motion_is_as_documented():
    for scene in every_motion():
        motion, heading = scene.combination.motion, shapes.DIRECTIONS[scene.combination.direction]
        heading = heading / np.hypot(*heading)
        steps = np.diff(places(scene), axis=0) * 560
        speed = np.hypot(*steps.T)
        turn = np.arctan2(steps[:, 1], steps[:, 0]) - np.arctan2(*heading[::-1])
        turn = np.degrees((turn + np.pi) % (2 * np.pi) - np.pi)
        there = np.arange(560) + 1 < 560 * scene.turn  # the step that turns is on neither side
        back = np.arange(560) > 560 * scene.turn
        assert speed[there | back].mean() == pytest.approx(scene.length, rel=0.01), scene
        if motion == "speeding up":
            np.testing.assert_allclose(speed, 2 * scene.length * (np.arange(560) + 0.5) / 560)
        else:
            np.testing.assert_allclose(speed[there | back], scene.length, rtol=1e-4)
        if motion == "arc":  # clockwise, as y is down
            np.testing.assert_allclose(turn, np.linspace(-75, 75, 560), atol=0.2)
        else:
            np.testing.assert_allclose(turn[there], 0, atol=1e-3)
        if motion == "turning back":
            np.testing.assert_allclose(np.abs(turn[back]), 180, atol=1e-3)
        elif motion == "bouncing":
            after = steps[back] / scene.length
            np.testing.assert_allclose(after, np.broadcast_to(heading * [1, -1], after.shape))
        elif motion != "arc":
            np.testing.assert_allclose(turn[back], 0, atol=1e-3)


def test_shapes_stay_in_the_field_and_touch_its_edge_where_they_turn():
    for scene in [*scenes(len(EVERY)), *every_motion("triangle", "large")]:
        low, high = shapes.extent(scene.combination)
        own = places(scene)
        assert (own.min(axis=0) + low >= -FIELD - 1e-9).all()
        assert (own.max(axis=0) + high <= FIELD + 1e-9).all()
        if shapes.turns_at_edge(scene.combination.motion):
            axis = shapes.edge_axis(scene.combination.direction)
            turn = scene.centroid(scene.turn * shapes.DURATION)
            gap = np.minimum(FIELD - (turn + high), turn + low + FIELD)[axis]
            assert gap == pytest.approx(0, abs=1e-9)


def test_clips_differ_in_what_no_caption_names():
    own = shapes.Combination("small", "red", "circle", "left", "black")
    rng = np.random.default_rng(0)
    found = [shapes.random_scene(own, rng) for _ in range(300)]
    starts = np.array([[scene.x, scene.y] for scene in found])
    assert (np.ptp(starts, axis=0) > [0.5, 0.45]).all()
    shares = [scene.length / shapes.max_length(own) for scene in found]
    assert 0.3 <= min(shares) < 0.32
    assert 0.93 < max(shares) <= 0.95
    colors = np.array([scene.color for scene in found])
    assert (np.ptp(colors, axis=0) > [30, 25, 25]).all()
    middles = np.array([places(scene).mean(axis=0) for scene in found])
    assert np.abs(middles).max() <= 0.25


@pytest.mark.parametrize("word", ["slowly", "quickly"])
def test_words_for_speeds_are_those_of_the_clips(word):
    for scene in every_motion():
        own = scene.combination._replace(speed=word)
        assert moving_shapes.speed_of(shapes.random_scene(own, np.random.default_rng(1))) == word


def test_colours_are_exactly_those_of_the_palette_in_their_shade():
    for scene in scenes(12):
        video = drawing.render(scene, 4, 40, 64)
        mask = coverage(scene, video)
        background = shapes.BACKGROUNDS[scene.combination.background]
        pure = np.array(shapes.COLORS[scene.combination.color])
        color = pure + 0.15 * abs(scene.shade) * ((255 if scene.shade > 0 else 0) - pure)
        color = np.floor(color + 0.5)
        for frame, (x, y) in zip(video, centroids(mask) * 40 + [32, 20], strict=True):
            np.testing.assert_allclose(frame[int(y), int(x)], color, atol=1)
        # Of the pixels that are not background, antialiased ones are the fewer.
        inside = (np.abs(video - color) <= 1).all(-1).sum()
        plain = (video == background).all(-1).sum()
        assert inside + plain > 0.9 * mask.size


def test_the_area_of_a_shape_is_that_of_its_drawing():
    for shape in shapes.SIDES:
        combination = shapes.Combination("large", "red", shape, "left", "black")
        drawn = drawing.coverage(combination, 100, np.arange(-50, 50), np.arange(-50, 50))
        expected = shapes.area(shape) * (100 * shapes.SIZES["large"]) ** 2
        assert drawn.sum() == pytest.approx(expected, rel=0.005)


def test_the_three_shapes_fill_their_bounding_boxes_differently():
    fill = {}
    for shape in shapes.SIDES:
        scene = shapes.Scene(
            shapes.Combination("large", "red", shape, "left", "black"), 0.3, 0.0, 0.1
        )
        mask = coverage(scene, drawing.render(scene, 1, 160, 256))[0]
        box = np.ptp(np.argwhere(mask > 0.5), axis=0) + 1
        fill[shape] = mask.sum() / box.prod()
    expected = {"square": 1, "circle": np.pi / 4, "triangle": 1 / 2}
    assert fill == pytest.approx(expected, rel=0.05)


def test_captions_name_every_attribute_and_no_two_are_the_same():
    texts = list(moving_shapes.captions())
    assert len(set(texts)) == len(texts) == 46_110
    for combination in EVERY:
        for template in range(len(shapes.TEMPLATES)):
            text = shapes.caption(combination, template)
            assert all(value in text for value in combination[:5])
    combination = shapes.Combination("small", "red", "circle", "left", "black")
    assert shapes.caption(combination) == "a small red circle moving left on a black background"
    bounce = combination._replace(direction="up and to the left", motion="bouncing", speed="slowly")
    assert shapes.caption(bounce, 3) == (
        "a black background with a small red circle that goes slowly up and to the left and bounces"
    )


def test_captions_fit_into_the_tokens_of_the_tiny_cascade():
    longest = max(len(text.replace(",", " ,").split()) for text in moving_shapes.captions())
    assert longest < tiny.get_config().text.t5_tokens  # one token ends a caption


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
    listed = repr(sorted(one[:5] for one in found)).encode()
    assert hashlib.sha256(listed).hexdigest().startswith(digest)


def test_the_splits_are_disjoint_and_complete():
    names = ("train", "validation", "test", "looks")
    counts = [len(split(name)) for name in names]
    assert sum(counts) == len(set(EVERY)) == 864
    assert {shapes.split_of(c) for c in EVERY} == set(names)


def test_test_and_validation_have_the_largest_and_the_smallest_hashes():
    ranked = sorted(EVERY, key=lambda c: hashlib.sha256(" ".join(c[:5]).encode()).hexdigest())
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
    for position, values in enumerate(list(shapes.ATTRIBUTES.values())[:5]):
        for name in ("train", "validation", "test"):
            share = collections.Counter(c[position] for c in split(name))
            for value in values:
                assert 0.4 < share[value] / (len(split(name)) / len(values)) < 1.6
        # Of so few looks shares differ more.
        assert {c[position] for c in split("looks")} == set(values)
    # Every pair of values is seen in training, so what is new is the combination.
    pairs = {pair for c in split("train") for pair in itertools.combinations(enumerate(c[:5]), 2)}
    assert pairs == {pair for c in EVERY for pair in itertools.combinations(enumerate(c[:5]), 2)}


def test_the_dataset_holds_what_it_says(tmp_path):
    config = moving_shapes.MovingShapesConfig(train=620, validation=90, test=90, looks=100)
    builder = moving_shapes.MovingShapes(config=config, data_dir=tmp_path)
    splits = {name: open_split(builder, name) for name in config.clips}
    assert {name: len(records) for name, records in splits.items()} == config.clips
    for name, records in splits.items():
        found = [moving_shapes.scene_of(record).combination for record in records]
        seen = collections.Counter(one._replace(motion="straight") for one in found)
        assert set(seen) == set(split(name))
        assert {one.motion for one in found} == set(shapes.MOTIONS)
        assert max(seen.values()) == 2
    for record in (splits["train"][i] for i in range(50)):
        scene = moving_shapes.scene_of(record)
        speeds = {"", moving_shapes.speed_of(scene)}
        allowed = [
            shapes.caption(scene.combination._replace(speed=speed), template)
            for speed in speeds
            for template in range(len(shapes.TEMPLATES))
        ]
        own = [text.decode() for text in record["captions"]]
        assert len(set(own)) == len(own) == 3
        assert set(own) <= set(allowed)
    names = [record["name"] for record in splits["validation"]]
    assert len(set(names)) == 90

    clip = moving_shapes.read(splits["train"][0], ClipSpec(8, 40, 64), None)
    np.testing.assert_array_equal(
        clip, drawing.render(moving_shapes.scene_of(splits["train"][0]), 8, 40, 64)
    )
    window = moving_shapes.read(splits["train"][0], ClipSpec(8, 40, 64, fps=7.5), None)
    assert window.shape == (8, 40, 64, 3)
    with pytest.raises(UnusableClip, match=r"too short: 3\.73 s, but 7\.00 s"):
        moving_shapes.read(splits["train"][0], ClipSpec(8, 40, 64, fps=1), None)
    with pytest.raises(InputError, match="splits are train, validation, test, looks"):
        open_split(builder, "held_out")


def test_an_empty_split_is_refused():
    with pytest.raises(InputError, match=r"have train 0, validation 1000, .* needs at least 1"):
        moving_shapes.MovingShapesConfig(train=0)
