"""Clips that are given another look, and whether they keep their path."""

from configs import tiny
from show1_jax.data.moving_shapes import held_out
from show1_jax.evaluation.prompts import difference
from show1_jax.evaluation.stylization import LOOKS, evaluate_stylization, pairs


def test_each_pair_differs_in_one_look():
    made = pairs(50, seed=0)
    assert pairs(5, seed=0) == made[:5]
    for index, (old, new) in enumerate(made):
        assert held_out(old.combination)
        assert difference(old.combination, new.combination) == [LOOKS[index % 3]]


def test_restyled_clips_keep_their_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("show1_jax.evaluation.stylization.STEPS", 10)
    rows = evaluate_stylization(tiny.get_config(), str(tiny.CHECKPOINT), 3, 0, tmp_path / "s.png")
    assert list(rows) == ["all", *LOOKS]
    assert rows["all"]["path"] > 0.9
    assert rows["all"]["look"] > 0.5
    assert "background" in capsys.readouterr().out
    assert (tmp_path / "s.png").is_file()
