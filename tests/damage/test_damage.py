"""The damaged inputs, some of them always and all with `-m slow`."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.damage.__main__ import attempt, describe
from tests.damage.box import Box, contents, written
from tests.damage.good import Good
from tests.damage.kinds import KINDS, Case

# Of those that are refused before anything is computed, one for each file that names files or runs.
QUICK = [
    ("released", "model_index.json: part '../outside'"),
    ("safetensors", "*.safetensors: huge shape"),
    ("shards", "*.index.json: name 2 everywhere"),
    ("config", "small.py: raise SystemExit(3)"),
    ("config", "small.py: no syntax"),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "good"
    folder.mkdir()
    return Good(folder)


@pytest.mark.parametrize(
    ("kind", "damage"), QUICK, ids=lambda text: text.partition(": ")[2] or text
)
def test_some_damaged_inputs_end_in_one_line(good, kind, damage, monkeypatch):
    # What else the program is given takes longer to make, and is not looked at.
    monkeypatch.setitem(KINDS, kind, dataclasses.replace(KINDS[kind], beside=()))
    number = list(KINDS[kind].damages).index(damage)
    outcome = attempt(Case(kind, number, damage), good, 0, 60)
    assert outcome.what == "refused", describe(outcome, 12)


def test_what_is_written_elsewhere_is_found(tmp_path):
    box = Box(tmp_path / "box")
    box.make()
    before = contents(box.folder)
    assert written(box, before, before, refused=True, whole=True) is None
    # But a conversion may leave what it has finished.
    (box.folder / "out" / "result.partial" / "unet").mkdir(parents=True)
    kept = contents(box.folder)
    assert written(box, before, kept, refused=True, whole=True) is None
    assert "result.partial" in str(written(box, before, kept, refused=False, whole=True))
    shutil.rmtree(box.folder / "out" / "result.partial")
    box.result.mkdir()
    (box.result / "half.json").write_text("{")
    after = contents(box.folder)
    assert "refused, but left" in str(written(box, before, after, refused=True, whole=True))
    assert "broken" in str(written(box, before, after, refused=False, whole=False))
    (tmp_path / "box" / "outside" / "kept.txt").write_text("other")
    after = contents(box.folder)
    assert "wrote outside/kept.txt" in str(written(box, before, after, refused=True, whole=True))


@pytest.mark.slow
def test_all_damaged_inputs_end_in_one_line():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.damage"]
    ended = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-5000:]
