"""The tables and the command, with a cascade that draws instead of sampling."""

import numpy as np
import pytest

from show1_jax.configs import tiny
from show1_jax.errors import InputError
from show1_jax.media import from_uint8, resize_uint8
from show1_jax.shapes import drawing, evaluation
from show1_jax.shapes import scenes as shapes
from show1_jax.shapes.arrays import Arrays
from show1_jax.shapes.evaluation import evaluate, judge, outlines, report
from show1_jax.shapes.prompts import draw, swap
from show1_jax.shapes.scenes import Combination
from show1_jax.shapes.sheet import Row, contact_sheet, verdict
from show1_jax.shapes.tables import table
from show1_jax.stages import names
from tests.shapes.clips import meanings

NOTHING = np.zeros((2, 2, 3), np.uint8)


def drawn(combination, seed, stage):
    """What a perfect model makes: fp32 pixels in [-1, 1]."""
    scene = shapes.random_scene(combination, np.random.default_rng(seed))
    video = drawing.render(scene, 8, 20, 32)
    if stage == "translation":
        video = resize_uint8(video, 40, 72)
    return from_uint8(video[0] if stage == "first_frame" else video)


class Drawn:
    """Results that are drawn when they are loaded."""

    def __init__(self, items, stages):
        self.items, self.stages = items, stages

    def has(self, item, stage):
        return stage in self.stages and item < len(self.items)

    def load(self, item, stage):
        return drawn(self.items[item].combination, self.items[item].seed, stage)


class Painter:
    """Stands for the evaluation. It paints red what should be blue."""

    def __init__(self, config, checkpoint, stages):
        self.stages = ["keyframes", "translation"] if stages is None else stages

    def check_inputs(self, items, results):
        pass

    def run(self, prompts, seeds, results, progress):
        for stage in self.stages:
            progress(stage, 1, 1)
            for item, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                combination = meanings().get(
                    prompt.replace("blue", "red"), shapes.combinations()[0]
                )
                results.save(item, stage, drawn(combination, seed, stage), {})


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(evaluation, "Engine", Painter)

    def run(count=20, stages=None, out="out", **options):
        folder = tmp_path / out if out else None
        config = tiny.get_config()
        sheet = tmp_path / "new" / "sheet.png"
        evaluate(
            config,
            "x",
            count,
            0,
            out=folder,
            sheet=sheet,
            stages=stages,
            overrides={"steps": ["2"]},
            **options,
        )
        assert config.keyframes.steps == 2
        assert sheet.stat().st_size > 0
        return capsys.readouterr().out

    return run


def numbers(text, row, part=0):
    """The cells of a row of the first or second table."""
    lines = [line for line in text.splitlines() if line.startswith(row)]
    return lines[part].split()[1:]


def test_a_perfect_model_is_always_right():
    items = draw(12, seed=0)
    stages = ["keyframes", "first_frame", "translation"]
    measured = judge(Drawn(items, stages), len(items), 1.6)
    assert list(measured) == stages
    # The last is stretched from 64x40 to 72x40, which the path does not show.
    for one, other in zip(measured["keyframes"], measured["translation"], strict=True):
        np.testing.assert_allclose(one.path, other.path, atol=0.01)
    text = report(measured, items, [])
    assert numbers(text, "keyframes") == numbers(text, "translation") == ["100.0"] * 8
    assert numbers(text, "first_frame") == [*["100.0"] * 3, "-", "100.0", "-", "-", "100.0"]
    chance = ["50.0", "16.7", "33.3", "12.5", "33.3", "20.0", "50.0", "0.0"]
    assert numbers(text, "chance") == chance
    assert judge(Drawn(items, stages), len(items) + 1, 1.6) == {}


def test_round_circles_are_told_from_others():
    items, stages = draw(20, seed=0), ["keyframes", "translation"]
    text = outlines(Drawn(items, stages), items, 1.6)
    assert numbers(text, "keyframes")[0] == numbers(text, "translation")[0] == "100.0"
    assert 0 < float(numbers(text, "translation")[1]) < 20
    squares = [
        item._replace(combination=item.combination._replace(shape="square")) for item in items
    ]
    # What is asked for are circles, and what is shown are squares.
    assert numbers(outlines(Drawn(squares, stages), items, 1.6), "keyframes")[0] == "0.0"


def test_a_report_says_which_prompts_they_were(run):
    assert "20 clips of the split validation: 86 combinations that settings" in run(out=None)
    for split in ("test", "looks"):
        text = run(split=split, out=None)
        assert f"Right in % of 20 clips of the split {split}: " in text
        assert "older than version 6.0.0 were shown them" in text


def test_swapping_a_word_changes_only_that():
    items = draw(20, seed=0)
    swapped = swap(items, seed=0)
    stages = ["keyframes", "first_frame"]
    obeying = judge(Drawn(items + swapped, stages), 40, 1.6)
    text = report(obeying, items, swapped)
    assert numbers(text, "keyframes", 1) == ["100.0"] * 9
    still = [*["100.0"] * 3, "-", "100.0", "-", "-", "100.0", "100.0"]
    assert numbers(text, "first_frame", 1) == still
    deaf = judge(Drawn(items + items, stages), 40, 1.6)
    text = report(deaf, items, swapped)
    assert numbers(text, "keyframes", 1) == ["0.0"] * 8 + ["100.0"]


def test_a_table_is_aligned():
    rows = {"one": {"a": 1.0, "long name": 0.125}, "another": {"a": 0.0}}
    assert table(rows, ["a", "long name"]).splitlines() == [
        "             a  long name",
        "one      100.0       12.5",
        "another    0.0          -",
    ]


def test_the_command_finds_what_a_model_gets_wrong(run, tmp_path):
    text = run()
    blue = np.mean([item.combination.color == "blue" for item in draw(20, seed=0)])
    assert 0 < blue < 1
    right = f"{100 * (1 - blue):.1f}"
    assert numbers(text, "keyframes") == ["100.0", right, *["100.0"] * 5, right]
    assert numbers(text, "translation") == numbers(text, "keyframes")
    assert "12 clips of translation" in text
    # The last stage is kept in bytes, and all can be judged again.
    assert np.load(tmp_path / "out" / "000-translation.npy").dtype == np.uint8
    assert run(stages=[]) == text


def test_the_command_with_empty_and_with_swapped_prompts(run):
    text = run(empty=True, out=None)
    # It always draws the first combination, which is not held out.
    assert numbers(text, "keyframes")[-1] == "0.0"
    assert numbers(text, "keyframes")[0] != "100.0"
    text = run(swapped=True, out=None)
    assert numbers(text, "keyframes", 1)[0] == "100.0"
    assert len(numbers(text, "keyframes", 1)) == 9


def test_bad_input_is_refused(run, tmp_path):
    config = tiny.get_config()
    with pytest.raises(InputError, match="give --checkpoint"):
        evaluate(config, None, 1, 0, out=None, sheet=tmp_path / "a.png", stages=None, overrides={})
    with pytest.raises(InputError, match="not both"):
        run(empty=True, swapped=True)
    with pytest.raises(InputError, match="no stage has a result"):
        run(stages=[], out="new")
    run(count=2)
    with pytest.raises(InputError, match="has results of other prompts or seeds"):
        run(count=3)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be used"):
        run(out="file")


def test_doing_a_stage_again_removes_what_came_of_the_old_one(tmp_path):
    arrays = Arrays(tmp_path)
    for stage in names():
        arrays.save(0, stage, np.zeros((1, 2, 2, 3), np.float32), {})
    arrays.save(0, "interpolation", np.ones((1, 2, 2, 3), np.float32), {})
    assert [arrays.has(0, stage) for stage in names()] == [True, True, False, False, False]
    np.testing.assert_array_equal(arrays.load(0, "interpolation"), 1)
    (tmp_path / "000-keyframes.npy").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        arrays.load(0, "keyframes")


def test_a_perfect_image_is_right_on_the_contact_sheet(tmp_path, monkeypatch):
    items, shown = draw(3, 0), []
    results = Drawn(items, ["first_frame"])
    measured = judge(results, 3, 1.6)
    monkeypatch.setattr(evaluation, "contact_sheet", lambda rows: shown.extend(rows) or NOTHING)
    evaluation._write_sheet(tmp_path / "a.png", results, measured, items, 3)
    assert [row.verdict for row in shown] == ["right"] * 3


def test_the_contact_sheet_shows_every_clip_and_verdict():
    asked = Combination("small", "red", "circle", "left", "black")
    assert verdict(asked, asked) == (True, "right")
    seen = asked._replace(color="blue", direction="?")
    assert verdict(seen, asked) == (False, "seen: color blue, direction ?")
    red, green = (
        np.full((n, 20, 32, 3), color, np.uint8)
        for n, color in ((8, (255, 0, 0)), (1, (0, 255, 0)))
    )
    sheet = contact_sheet([Row(red, "a", True, "right"), Row(green, "b", False, "seen: ?")])
    assert sheet.dtype == np.uint8
    reds, greens = ((sheet == color).all(axis=-1).sum() for color in ((255, 0, 0), (0, 255, 0)))
    assert reds == 6 * greens > 0
