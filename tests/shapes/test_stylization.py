"""Clips that are given another look, and whether they keep their path."""

import numpy as np
import pytest

from show1_jax.configs import tiny
from show1_jax.errors import InputError
from show1_jax.shapes.judge import measure
from show1_jax.shapes.motion import TAUGHT
from show1_jax.shapes.scenes import caption, difference, split_of
from show1_jax.shapes.stylization import (
    CONTROL,
    LOOKS,
    PAIRS,
    choose,
    evaluate_stylization,
    pairs,
    taught_pairs,
)
from show1_jax.shapes.taught_motions import TAUGHT_MOTIONS
from tests import programs


def test_each_pair_differs_in_one_look():
    made = pairs(50, seed=0)
    assert pairs(5, seed=0) == made[:5]
    for index, pair in enumerate(made):
        assert difference(pair.old, pair.new) == [LOOKS[index % 3]] == [pair.look]
        assert TAUGHT_MOTIONS[pair.motion][0] in pair.prompt(pair.new)


def test_straight_clips_are_told_their_path_and_taught_ones_have_the_look_that_was_taught():
    for pair in pairs(6, seed=0, motions=["straight"]):
        assert split_of(pair.old) == "validation"
        assert pair.prompt(pair.old) == caption(pair.old, pair.template)
        path = measure(pair.clip(np.random.default_rng(0), (8, 40, 64))).path
        assert pair.old.motion == "straight"
        assert np.linalg.norm(path[-1] - path[0]) > 0.1
    taught = taught_pairs("zigzag")
    assert {pair.look for pair in taught} == set(LOOKS)
    assert {pair.old for pair in taught} == {TAUGHT}
    assert len({pair.new for pair in taught}) == len(taught) == 9


def test_how_many_pairs_there_are_is_refused_where_an_adapter_decides_it():
    assert choose(4, 0, None, "") == pairs(4, 0)
    assert choose(4, 1, "straight", "") == pairs(4, 1, ["straight"])
    assert len(choose(None, 0, None, "")) == PAIRS
    assert choose(None, 0, "zigzag", "a.safetensors") == taught_pairs("zigzag")
    with pytest.raises(InputError, match=r"uses the 9 pairs .*; remove --pairs"):
        choose(4, 0, "zigzag", "a.safetensors")
    with pytest.raises(InputError, match=r"needs the --motion that it learned: circle"):
        choose(None, 0, "straight", "a.safetensors")


def test_the_command_line_refuses_pairs_of_an_adapter():
    options = ("--motion=circle", "--adapter=none.safetensors", "--pairs=3", "--checkpoint=none")
    done = programs.run("show1_jax.shapes.stylization", *options)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --adapter uses the 9 pairs")


@pytest.mark.slow
def test_restyled_clips_keep_their_path_and_others_do_not_have_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("show1_jax.shapes.stylization.STEPS", 10)
    both, sheet = pairs(4, 0), tmp_path / "s.png"
    rows = evaluate_stylization(tiny.get_config(), str(tiny.CHECKPOINT), both, 0, sheet)
    assert list(rows) == ["all", *LOOKS, CONTROL]
    assert rows["all"]["path"] > 0.9
    assert rows["all"]["rest"] > 0.5
    assert rows[CONTROL]["path"] < 0.6
    assert "background" in capsys.readouterr().out
    assert sheet.is_file()
