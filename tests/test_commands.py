"""Programs say in one line what is wrong with their flags, wherever they are started."""

from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=tinny.py"], "there is no file 'tinny.py'"),
        (
            [f"--config={ROOT}/configs/customize.py:shew1"],
            "there is no base 'shew1': take tiny or show1",
        ),
        (
            ["--config.keyframs.steps=3"],
            "the config has no key 'keyframs' there; did you mean 'keyframes'?",
        ),
        (
            ["--config.keyframes.stepz=3"],
            "the config has no key 'stepz' there; did you mean 'steps'?",
        ),
        (["--prompts=0"], "flag --prompts=0: 0 is not a positive integer"),
    ],
)
def test_wrong_flags_are_named_in_one_line(flags, message, tmp_path):
    ended = programs.run("show1_jax.evaluation", *flags, cwd=tmp_path)
    assert (ended.stderr, ended.returncode) == (f"error: {message}\n", 1)
