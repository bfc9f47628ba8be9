"""`kill -9` at any moment costs at most the steps since the last checkpoint."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from show1_jax.checkpoints.store import load_params
from tests.training.small import assert_same

ROOT = Path(__file__).parent.parent.parent
# While starting; some time after a step was made; while the first checkpoint is being
# written; and some time after, or while the next is, when this very process has saved one.
KILLS = ("starting", "step", "saving", *("saved", "saving next") * 3, "starting")


@pytest.fixture
def start(checkpoint, data_dir, tmp_path):
    """Starts `train.py` in a folder; its output goes to a file there."""

    def process(workdir, steps):
        workdir.mkdir(exist_ok=True)
        command = [
            sys.executable, "train.py", "--config=tests/training/interrupted.py:keyframes",
            f"--config.checkpoint={checkpoint}",
            f"--config.train.keyframes.data_dir={data_dir}",
            f"--config.train.keyframes.steps={steps}",
            f"--workdir={workdir}",
        ]  # fmt: skip
        settings = {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
        with (workdir / "output.txt").open("w") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=os.environ | settings, stdout=output, stderr=output
            )

    return process


def finish(process, workdir, steps):
    """Lets a run end, and gives what it left."""
    assert process.wait(600) == 0, (workdir / "output.txt").read_text()
    last = workdir / "keyframes" / "checkpoints" / str(steps)
    text = (workdir / "keyframes" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return {
        "state": load_params(last / "state"),
        "position": json.loads((last / "data" / "metadata").read_text()),
        "losses": {x["step"]: x["loss"] for x in lines if "loss" in x},
        "validation": {x["step"]: x["validation_loss"] for x in lines if "validation_loss" in x},
        "steps": [x["step"] for x in lines],
        "exported": load_params(workdir / "checkpoint" / "show-1-base" / "unet" / "params"),
    }


def checkpoints(workdir):
    """The steps of whole checkpoints, and the names of those that are being written."""
    folder = workdir / "keyframes" / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {int(name) for name in names if name.isdigit()}, [n for n in names if "tmp" in n]


def wait_for(process, moment, workdir, chance):
    """Returns at a moment of that kind."""
    begin = time.monotonic()
    before, _ = checkpoints(workdir)
    output = workdir / "output.txt"

    def until(condition):
        while not condition():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() - begin < 300, output.read_text()
            time.sleep(0.001)

    if moment == "starting":
        time.sleep(chance.uniform(0, 10))
        return
    until(lambda: "  loss " in output.read_text())
    if moment.startswith("save") or moment.endswith("next"):
        until(lambda: checkpoints(workdir)[0] - before)
    if moment.startswith("saving"):
        until(lambda: checkpoints(workdir)[1])
        time.sleep(chance.uniform(0, 0.2))
    else:
        time.sleep(chance.uniform(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "steps"),
    [pytest.param(("saved",), 60, marks=pytest.mark.smoke, id="once"), (KILLS, 400)],
)
def test_killed_runs_end_as_if_they_had_not_been(start, tmp_path, kills, steps):
    straight = tmp_path / "straight"
    expected = finish(start(straight, steps), straight, steps)
    assert expected["steps"] == sorted(expected["steps"])

    workdir, chance = tmp_path / "killed", random.Random(0)
    cut_off = 0
    for moment in kills:
        process = start(workdir, steps)
        wait_for(process, moment, workdir, chance)
        process.kill()
        assert process.wait() == -9, (workdir / "output.txt").read_text()
        whole, begun = checkpoints(workdir)
        cut_off += bool(begun)
        print(moment, sorted(whole), begun)
    assert cut_off > 0 or "saving" not in kills
    assert 0 < max(whole) < steps
    found = finish(start(workdir, steps), workdir, steps)
    for name in ("state", "exported"):
        assert_same(found.pop(name), expected.pop(name))
    assert found == expected
