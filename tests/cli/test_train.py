"""The command line of training; what it trains is tested in `tests/training`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).parents[2]


def train_py(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "train.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --workdir"),
        (["--workdir=w", "--json"], "--json is for --aot"),
        (["--workdir=w", "--config=configs/tiny.py:sound"], "there is no part 'sound'"),
        (["--workdir=w", "--config.train.vae.stepz=3"], "stepz"),
        (["--workdir=w", "--config.train.vae.steps=few"], "few"),
        (["--workdir=w", "--config.train.vae.accumulate=7"], "cannot be split into 7 parts"),
        (["--workdir=w", "--config.train.vae.threads=-1"], "must be 0 to 1024"),
        (["--workdir=w", "--config.train.vae.seed=-1"], "must be 0 to 4.29497e+09"),
        (["--workdir=w", "--config.batch_size=3"], "give --config.train.PART.batch_size"),
        (["--workdir=w", "--curve"], " has no runs"),
        (["--workdir=az://bucket/w"], "paths with az:// are not supported"),
        (
            ["--workdir=w", "--config.train.vae.data_dir=az://b"],
            "paths with az:// are not supported",
        ),
        (["--config=configs/customize.py", "--config.out=az://b/a"], "paths with az:// are not"),
        (["--config=configs/customize.py", "--workdir=w"], "not --workdir"),
        (["--config=configs/customize.py", "--config.dtype=bfloat16"], "--config.customize.dtype"),
        (["--config=configs/customize.py:keyframes"], "no base 'keyframes': take tiny or show1"),
        (["--config=configs/customize.py", "--config.video=a.mp4"], "1 clip(s) and 0 prompt(s)"),
        (["--workdir=w", "--curve", "--config=configs/tiny.py:vae"], "has no numbers yet"),
    ],
)
def test_the_command_line_ends_in_a_clear_line(tmp_path, arguments, message):
    wrong = ("give --", "--json", "not --workdir", "stepz", "few", "--config.customize.dtype")
    arguments = [text.replace("=w", f"={tmp_path}").replace("=configs", f"={ROOT}/configs")
                 for text in arguments]  # fmt: skip
    done = programs.run(ROOT / "train.py", *arguments)
    assert done.returncode == (2 if message.startswith(wrong) else 1)
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_home_needs_no_shell_to_be_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    done = train_py("--workdir=~/w", "--curve")
    assert done.stderr.startswith(f"error: {tmp_path / 'w'} has no runs")
    assert done.stderr.count("\n") == 1


def test_a_curve(tmp_path):
    for part in ("vae", "keyframes"):
        (tmp_path / part).mkdir()
        lines = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2)]
        (tmp_path / part / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    done = train_py(f"--workdir={tmp_path}", "--curve")
    assert done.returncode == 0, done.stderr
    pictures = [str(tmp_path / part / "loss.png") for part in ("vae", "keyframes")]
    assert done.stdout.split() == pictures
    assert all(Path(path).is_file() for path in pictures)
