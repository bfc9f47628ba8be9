"""Stages on true inputs, with a cascade that draws instead of sampling."""

import dataclasses
import re

import numpy as np
import pytest

from show1_jax.configs import tiny
from show1_jax.errors import InputError
from show1_jax.media import from_uint8
from show1_jax.shapes import alone, drawing
from show1_jax.shapes import scenes as shapes
from show1_jax.shapes.alone import Truth, compare, evaluate_alone
from show1_jax.shapes.paths import centroid_error, centroids
from show1_jax.shapes.prompts import draw
from show1_jax.stages import build

BOUNCE = shapes.Combination(
    "small", "red", "circle", "up and to the left", "black", "bouncing", "quickly"
)
COMBINATIONS = [*(item.combination for item in draw(2, 0)), BOUNCE]
SCENES = [shapes.random_scene(c, np.random.default_rng(i)) for i, c in enumerate(COMBINATIONS)]

STAGES = build(tiny.get_config())


def numbers(text: str, row: str) -> list[float]:
    (line,) = (line for line in text.splitlines() if line.startswith(row))
    return [float(number) for number in re.findall(r"[\d.]+|inf", line.removeprefix(row))]


def test_true_clips_are_those_of_the_cascade():
    truth = Truth(STAGES, SCENES, ["super_resolution"])
    keyframes, clip = truth.load(0, "keyframes"), truth.load(0, "interpolation")
    assert keyframes.shape == (8, 10, 16, 3)
    assert clip.shape == (29, 10, 16, 3)
    np.testing.assert_array_equal(clip[::4], keyframes)
    assert truth.load(0, "first_frame").shape == (40, 64, 3)
    assert truth.has(0, "first_frame")
    assert not truth.has(0, "super_resolution")
    truth.save(0, "super_resolution", clip, {})
    assert truth.has(0, "super_resolution")
    np.testing.assert_array_equal(truth.load(0, "super_resolution"), clip)


@pytest.mark.parametrize("stage", ["interpolation", "first_frame", "super_resolution"])
def test_a_perfect_stage_beats_its_filter(stage):
    truth = Truth(STAGES, SCENES, [stage])
    for item in range(3):
        # Half a grey level up, for the cascade truncates when it makes bytes.
        truth.save(item, stage, from_uint8(truth.true(item, stage)) + 0.5 / 127.5, {})
    text = compare(STAGES, stage, truth, SCENES)
    other = "blending" if stage == "interpolation" else "bicubic"
    best, worse = numbers(text, stage), numbers(text, other)
    assert best[0] == np.inf
    assert 15 < worse[0] < 50
    if stage == "interpolation":
        assert best[1] == 0
        assert 0.01 < worse[1] < 1
        # Where the shape turns, a blend of the keyframes around it cuts the corner.
        assert best[2] == 0
        assert worse[2] > 2 * worse[1]
        assert best[3] == worse[3] == 100


def test_translation_is_compared_with_what_it_starts_from():
    truth = Truth(STAGES, SCENES, ["translation"])
    for item, scene in enumerate(SCENES):
        # Drawn at this size they are sharper, and less wide by the cascade's stretch.
        wide = alone.resize_uint8(drawing.render(scene, 29, 80, 128), 80, 144)
        truth.save(item, "translation", from_uint8(wide), {})
    text = compare(STAGES, "translation", truth, SCENES)
    near, sharp, right = numbers(text, "translation")
    far, blurred, also = numbers(text, "bicubic")
    assert near > far + 2
    assert far > 25
    assert sharp > 1.1 * blurred
    assert right == also == 100


def test_two_ghosts_are_in_neither_place():
    combination = shapes.Combination("large", "red", "circle", "right", "black")
    one, other = (shapes.Scene(combination, x, 0, 0) for x in (-0.1, 0.1))
    video = [drawing.render(scene, 1, 80, 128) for scene in (one, other)]
    blended = (0.75 * video[0] + 0.25 * video[1]).astype(np.uint8)
    scene = shapes.Scene(combination, -0.05, 0, 0)
    middle = drawing.render(scene, 1, 80, 128)
    true = centroids(middle, scene)
    np.testing.assert_allclose(true, [[63.5 - 4, 39.5]], atol=0.1)
    assert centroid_error(centroids(blended, scene), true) == pytest.approx(4, abs=0.3)
    assert np.isnan(centroids(np.zeros_like(middle), scene)).all()


def test_the_frames_at_a_turn_are_those_between_the_keyframes_around_it():
    scene = shapes.Scene(BOUNCE, 0, 0, 0.5, turn=0.5)
    assert alone._turning(scene, 29, 8) == slice(13, 16)
    assert alone._turning(dataclasses.replace(scene, turn=0.99), 29, 8) == slice(25, 28)
    assert alone._turning(dataclasses.replace(scene, turn=0.0), 29, 8) == slice(1, 4)
    straight = dataclasses.replace(scene, combination=BOUNCE._replace(motion="straight"))
    assert alone._turning(straight, 29, 8) == slice(0)


def test_the_command(monkeypatch, capsys):
    ran, asked, known = [], [], list(STAGES)

    class Perfect:
        def __init__(self, config, checkpoint, stages):
            self.stages = stages or ["keyframes", *alone.groups(known)[0], *alone.groups(known)[1]]

        def run(self, prompts, seeds, results, progress):
            ran.append((list(self.stages), len(prompts), list(seeds)))
            asked.extend(prompts)
            for stage in self.stages:
                progress(stage, 1, 1)
                for item in range(len(prompts)):
                    made = from_uint8(results.true(item, stage)) + 0.5 / 127.5
                    results.save(item, stage, made[0] if stage == "first_frame" else made, {})

    monkeypatch.setattr(alone, "Engine", Perfect)
    evaluate_alone(tiny.get_config(), "x", 2, 7, stages=None, overrides={"steps": ["2"]})
    assert ran == [
        (["interpolation"], 2, [7, 8]),
        (["first_frame", "super_resolution"], 2, [7, 8]),
    ]
    text = capsys.readouterr().out
    assert asked == [item.prompt for item in draw(2, 7)] * 2
    evaluate_alone(
        tiny.get_config(), "x", 2, 7, stages=["interpolation"], overrides={}, split="looks"
    )
    assert asked[4:] == [item.prompt for item in draw(2, 7, "looks")]
    for stage in ("interpolation", "first_frame", "super_resolution"):
        assert numbers(text, stage)[0] == np.inf
    with pytest.raises(InputError, match="name stages that start from others: interpolation"):
        evaluate_alone(tiny.get_config(), "x", 2, 7, stages=["keyframes"], overrides={})
